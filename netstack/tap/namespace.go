package tap

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, held by a descriptor only. Its methods may be called concurrently. Where a
// *Namespace is a parameter, nil is the caller's own namespace.
type Namespace struct {
	file *os.File
}

// NewNamespace makes an empty network namespace, its loopback interface down. It needs CAP_SYS_ADMIN.
func NewNamespace() (*Namespace, error) {
	var ns *Namespace
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		ns, err = CurrentNamespace()
		return err
	})
	if err != nil && ns != nil {
		ns.Close()
		ns = nil
	}
	return ns, err
}

// OpenNamespace opens the network namespace behind a path such as /proc/1/ns/net.
func OpenNamespace(path string) (*Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	ns, err := NamespaceFromFile(f)
	if err != nil {
		f.Close()
	}
	return ns, err
}

// NamespaceFromFile makes a Namespace of a descriptor received from elsewhere, and owns it unless it is refused.
func NamespaceFromFile(f *os.File) (*Namespace, error) {
	typ, err := -1, error(nil)
	if cerr := control(f, func(fd int) { typ, err = unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE) }); cerr != nil {
		err = cerr
	}
	if err != nil || typ != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%s is not a network namespace", f.Name())
	}
	return &Namespace{file: f}, nil
}

// CurrentNamespace opens the network namespace of the calling thread.
func CurrentNamespace() (*Namespace, error) {
	return OpenNamespace("/proc/thread-self/ns/net")
}

// File is the descriptor, which stays the Namespace's.
func (ns *Namespace) File() *os.File { return ns.file }

// Close lets go of the namespace. The kernel takes it down, with all its interfaces, when nobody else holds it.
func (ns *Namespace) Close() error { return ns.file.Close() }

// Do calls f on an operating system thread that is inside the namespace. Files, sockets and processes that f makes
// belong to the namespace for good; goroutines that f starts run outside. When the thread cannot be brought back it
// is thrown away with its goroutine, and Do returns an error.
func (ns *Namespace) Do(f func() error) error {
	if ns == nil {
		return f()
	}
	return onThread(func() error {
		if err := ns.enter(); err != nil {
			return err
		}
		return f()
	})
}

func (ns *Namespace) enter() error {
	var err error
	if cerr := control(ns.file, func(fd int) { err = unix.Setns(fd, unix.CLONE_NEWNET) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return nil
}

// onThread calls f on a locked thread and then restores the thread's network namespace. The thread of the caller is
// used, not one made for the purpose: a thread that ends would fire the Pdeathsig of all children it ever started.
func onThread(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := CurrentNamespace()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if back := home.enter(); back != nil {
			// Still locked: the runtime ends the thread when the goroutine ends.
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
		} else {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	return f()
}

// Start starts cmd inside the namespace.
func (ns *Namespace) Start(cmd *exec.Cmd) error {
	return ns.Do(cmd.Start)
}

// Handle opens a netlink socket (NETLINK_ROUTE) that speaks for the namespace. The caller closes it.
func (ns *Namespace) Handle() (*netlink.Handle, error) {
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		if h != nil {
			h.Close()
		}
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// control calls f with f's descriptor without touching its O_NONBLOCK flag, as Fd would.
func control(file *os.File, f func(fd int)) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Control(func(fd uintptr) { f(int(fd)) })
}
