// Package tap makes, configures and opens TAP devices and moves superframes through them. No other package uses their
// ioctls or setns.
//
// # Theory of operation
//
// One read(2) or write(2) on a TAP moves one Ethernet frame, and no system call moves several. Only frames larger than
// those on the wire spread the cost of the system call over more bytes. With IFF_VNET_HDR the kernel hands over TCP and
// UDP segments that it has not cut yet (superframes, up to 64 KiB), each behind a 10-byte virtio_net_hdr, and accepts
// them as well.
//
// songgao/water creates a device but cannot set that flag. Create therefore lets water make the device persistent,
// closes water's descriptor, and attaches again with the header. The first descriptor has to be closed because the
// kernel keeps the old flags while another queue is attached (tun_set_iff in drivers/net/tun.c). water opens without
// O_CLOEXEC, so Create holds syscall.ForkLock meanwhile.
//
// The network namespace of a TAP is the namespace of the thread that opens /dev/net/tun. Namespace.Do runs a function
// on a thread that has entered a namespace. Nothing is mounted: a namespace lives as long as a descriptor, a process or
// a socket holds it.
//
// An attached descriptor needs no capability and no namespace any more. It can be handed to another process, which
// checks it (Check) before trusting it. The device stays, and frames for it wait in its queue, as long as any process
// holds a duplicate of the descriptor. assumptions_test.go proves each of these statements.
//
// # Reading and writing
//
// A poll.Poller reads all Devices with as many goroutines as there are processors. A goroutine that finds a Device
// ready handles up to a turn (16) of its frames, one after the other, and then arms the Device again. An unarmed Device
// wakes nobody, so a burst costs one wake-up. Only one goroutine at a time reads a pod's Device, which keeps its
// packets in order. The handler owns a frame's buffer until it returns a buffer for the next frame. A second function
// is called at the end of each turn, for work that is done once for many frames. A handler that has to wait says so
// (poll.Poller.Waiting), and another goroutine takes its place.
//
// Device.Write and Device.Writev may be called from any number of goroutines: one write(2) is one frame, and the kernel
// keeps frames apart. They take no lock. Device counts the writers in progress, so that Close does not close the
// descriptor under them.
//
// All duplicates of a descriptor share one O_NONBLOCK flag. (*os.File).Fd clears it for all of them, in every process.
// Use SyscallConn instead.
//
// The package is larger than others because imports_test.go keeps netlink and the ioctls of TAPs in one place.
package tap
