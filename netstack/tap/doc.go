// Package tap makes, configures and opens TAP devices and moves superframes through them. It is the only place that
// uses ioctl and setns.
//
// # Theory of operation
//
// A TAP carries an Ethernet frame per read(2) and write(2) and nothing can batch them, so only frames larger than the
// wire's amortise the system call. With IFF_VNET_HDR the kernel hands over TCP and UDP segments it has not cut yet
// (superframes, up to 64 KiB), each behind a 10-byte virtio_net_hdr, and takes the same back.
//
// songgao/water creates a device but cannot set that flag. Create therefore lets water make it persistent, closes
// water's descriptor (while another queue is attached the kernel keeps the old flags: drivers/net/tun.c,
// tun_set_iff), and attaches again with the header. water opens without O_CLOEXEC, hence syscall.ForkLock around it.
//
// The network namespace of a TAP is that of the thread which opens /dev/net/tun. Namespace.Do runs a function on a
// thread that has entered a namespace. Nothing is mounted: a namespace lives as long as a descriptor, a process or a
// socket holds it.
//
// Once attached, a descriptor needs no capability and no namespace any more: it can be handed to another process,
// which checks it (Check) before it trusts it. The device stays, and frames for it wait in its queue, as long as
// anybody holds a duplicate. assumptions_test.go proves each of these.
//
// # Reading and writing
//
// Device.Run reads in one goroutine: it drains the queue with plain read(2) until EAGAIN and only then parks on the
// runtime's poller, so a burst costs one wake-up. The buffer given to the handler is borrowed until it returns; the
// handler returns the buffer to read into next, usually the same.
//
// Device.Write and Device.Writev may be called from any number of goroutines: one write(2) is one frame, and the
// kernel keeps them apart. They take no lock; a count of writers in flight keeps Close from closing the descriptor
// under them.
//
// All duplicates of a descriptor share one O_NONBLOCK flag. (*os.File).Fd clears it for all of them, in every
// process: use SyscallConn.
package tap
