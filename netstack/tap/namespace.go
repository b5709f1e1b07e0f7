package tap

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, held by a descriptor only. Its methods may be called concurrently. Where a function
// takes a *Namespace, nil means the caller's own namespace.
type Namespace struct {
	file *os.File
}

// NewNamespace makes an empty network namespace, whose loopback interface is down. It needs CAP_SYS_ADMIN.
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

// OpenNamespace opens the network namespace at a path such as /proc/1/ns/net. Whatever else is there is not opened:
// to open a FIFO waits for its other end, and to open a device may do things.
func OpenNamespace(path string) (*Namespace, error) {
	f, err := openInNSFS(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	ns, err := NamespaceFromFile(f)
	if err != nil {
		f.Close()
	}
	return ns, err
}

// openInNSFS opens a file of the kernel's file system of namespaces.
func openInNSFS(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%s is no namespace", path)
	}
	f, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(f), path), nil
}

// NamespaceFromFile makes a Namespace from a descriptor that was received from elsewhere. The Namespace owns f; on an
// error f stays the caller's.
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

// File returns the descriptor, which the Namespace still owns.
func (ns *Namespace) File() *os.File { return ns.file }

// Close closes the descriptor. The kernel deletes the namespace with all its interfaces when nobody else holds it.
func (ns *Namespace) Close() error { return ns.file.Close() }

// Do calls f on an operating system thread that is inside the namespace. Files, sockets and processes that f makes
// belong to the namespace for good, but goroutines that f starts run outside. If the thread cannot return to its own
// namespace, Do returns an error, and the thread ends with its goroutine.
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

// onThread calls f on a locked thread and then restores the thread's network namespace. It uses the caller's thread
// instead of a new one: when a thread ends, the kernel sends the Pdeathsig to all children that the thread started.
func onThread(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := CurrentNamespace()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if back := home.enter(); back != nil {
			// The goroutine stays locked to the thread, so the runtime ends the thread with it.
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

// Handle opens a netlink socket (NETLINK_ROUTE) in the namespace. The caller closes it.
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

// control calls f with the file's descriptor. Unlike (*os.File).Fd, it does not clear O_NONBLOCK.
func control(file *os.File, f func(fd int)) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Control(func(fd uintptr) { f(int(fd)) })
}
