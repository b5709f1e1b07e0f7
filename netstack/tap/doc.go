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
// A poll.Poller reads all Devices with as many goroutines as there are processors. One that finds a Device ready takes
// up to a turn of frames from it, each to its end, and then arms it again; meanwhile the Device wakes nobody, so a
// burst costs one wake-up. A pod is read by one goroutine at a time, which keeps its packets in order. A frame's buffer
// is the handler's until it returns one for the next frame. A turn's end is told, for what is done once for many
// frames. A handler that has to wait says so (poll.Poller.Waiting), and another goroutine takes its place.
//
// Device.Write and Device.Writev may be called from any number of goroutines: one write(2) is one frame, and the
// kernel keeps them apart. They take no lock; a count of writers in flight keeps Close from closing the descriptor
// under them.
//
// All duplicates of a descriptor share one O_NONBLOCK flag. (*os.File).Fd clears it for all of them, in every
// process: use SyscallConn.
package tap
