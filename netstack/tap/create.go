package tap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/songgao/water"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const device = "/dev/net/tun"

// ErrExists says that an interface of that name exists already.
var ErrExists = errors.New("an interface of that name exists already")

// Create makes a TAP in ns, configures it as c says and brings it up. It returns a descriptor with virtio-net header
// and offloads on, which the caller owns. Without c.Persist the device is deleted when the last duplicate of the
// descriptor is closed. Create needs CAP_NET_ADMIN over the namespace. After an error no new device is left behind.
func Create(ns *Namespace, c Config) (*os.File, error) {
	if c.Name == "" || len(c.Name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("create tap: the name %q must have 1 to %d bytes", c.Name, unix.IFNAMSIZ-1)
	}
	var f *os.File
	err := ns.Do(func() (err error) {
		f, err = create(c)
		return err
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("create tap %s: %w", c.Name, err)
	}
	return f, nil
}

// create runs inside the namespace.
func create(c Config) (f *os.File, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()

	old, err := h.LinkByName(c.Name)
	switch {
	case err == nil && !c.Reuse:
		return nil, ErrExists
	case err == nil && old.Type() != "tuntap":
		return nil, fmt.Errorf("an interface of that name exists already and is a %s", old.Type())
	case err == nil:
	case errors.As(err, &netlink.LinkNotFoundError{}):
		if err := makeDevice(c.Name); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				remove(h, c.Name)
			}
		}()
	default:
		return nil, err
	}

	if f, err = attach(c.Name); err != nil {
		return nil, err
	}
	if err = own(f, c); err == nil {
		err = configure(h, c)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// makeDevice makes a persistent TAP. It opens the device file itself first, because water leaks its descriptor when an
// ioctl fails. After that the only likely error is a missing capability.
func makeDevice(name string) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: device, Err: err}
	}
	unix.Close(fd)

	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	ifce, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, Persist: true},
	})
	if err != nil {
		return err
	}
	return ifce.Close()
}

// remove deletes a device after a failed Create. water made it persistent, so closing its descriptor would not delete
// it.
func remove(h *netlink.Handle, name string) {
	if l, err := h.LinkByName(name); err == nil {
		_ = h.LinkDel(l)
	}
}

// Open attaches to an existing TAP in ns. It needs no capability when the caller is the device's owner. Only one
// descriptor, with its duplicates, can be attached at a time; while another one is, the error is EBUSY.
func Open(name string, ns *Namespace) (*os.File, error) {
	var f *os.File
	err := ns.Do(func() (err error) {
		// Attaching to a name that does not exist would create it.
		if _, err := net.InterfaceByName(name); err != nil {
			return err
		}
		f, err = attach(name)
		return err
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return f, nil
}

// ErrNoDevice says that an interface does not exist.
var ErrNoDevice = errors.New("there is no such interface")

// Configure brings the TAP that f is attached to, in ns, into the state that c describes, as Create does with c.Reuse.
// It is for a persistent device whose only queue is in use. The error wraps ErrNoDevice when c.Name is not the name of
// f's device, or is not in ns.
func Configure(ns *Namespace, f *os.File, c Config) error {
	err := ns.Do(func() error {
		info, err := Check(f)
		// The device was deleted, or has another name.
		if errors.Is(err, unix.EBADFD) || err == nil && info.Name != c.Name {
			return ErrNoDevice
		}
		if err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		if _, err := h.LinkByName(c.Name); errors.As(err, &netlink.LinkNotFoundError{}) {
			return ErrNoDevice
		}
		if err := own(f, c); err != nil {
			return err
		}
		c.Reuse = true
		return configure(h, c)
	})
	if err != nil {
		return fmt.Errorf("configure tap %s: %w", c.Name, err)
	}
	return nil
}

// attach opens the queue of an existing TAP in the thread's namespace, with the virtio-net header.
func attach(name string) (*os.File, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: device, Err: err}
	}
	if err := setFlags(fd, name); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
