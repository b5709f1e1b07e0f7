package tap

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Offloads is a set of tasks that the kernel may leave undone in the frames it hands over, and does itself for the
// frames it is given.
type Offloads uint8

// The single offloads. Segmentation depends on Csum (set_offload in drivers/net/tun.c).
const (
	Csum Offloads = unix.TUN_F_CSUM // checksums left partial
	TSO4 Offloads = unix.TUN_F_TSO4 // TCP superframes
	TSO6 Offloads = unix.TUN_F_TSO6
	USO  Offloads = unix.TUN_F_USO4 | unix.TUN_F_USO6 // UDP superframes, since Linux 6.2, both families or none

	AllOffloads = Csum | TSO4 | TSO6 | USO
)

func (o Offloads) String() string {
	var s []string
	for _, x := range []struct {
		bit  Offloads
		name string
	}{{Csum, "csum"}, {TSO4, "tso4"}, {TSO6, "tso6"}, {USO, "uso"}} {
		if o&x.bit != 0 {
			s = append(s, x.name)
		}
	}
	if s == nil {
		return "none"
	}
	return strings.Join(s, ",")
}

// Refusal says why an offload that was wanted is not in use.
type Refusal struct {
	Offload Offloads
	// Err is the kernel's error, either for TUNSETOFFLOAD or for a frame of the self-test.
	Err error
}

// Info describes a TAP descriptor, as the kernel reports it.
type Info struct {
	Name     string   // the interface's name in its own namespace
	Flags    uint16   // IFF_TAP, IFF_VNET_HDR, IFF_PERSIST, ...
	Offloads Offloads // accepted by the kernel
	Refused  []Refusal
}

// Check verifies that f, which may come from another process, is an attached TAP with virtio-net header. It brings f
// into the state this package works with: non-blocking, a 10-byte little-endian header, and all offloads that the
// kernel accepts. f stays the caller's.
func Check(f *os.File) (Info, error) {
	var info Info
	var err error
	if cerr := control(f, func(fd int) { info, err = check(fd, AllOffloads) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return Info{}, fmt.Errorf("check tap descriptor: %w", err)
	}
	return info, nil
}

func check(fd int, want Offloads) (Info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Info{}, err
	}
	// 10:200 is /dev/net/tun (Documentation/admin-guide/devices.txt). This is checked before any ioctl, because an
	// ioctl number means something else to another driver.
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(10, 200) {
		return Info{}, errors.New("it must be a descriptor of " + device)
	}
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return Info{}, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return Info{}, fmt.Errorf("it must be attached to a device: TUNGETIFF: %w", err)
	}
	info := Info{Name: ifr.Name(), Flags: ifr.Uint16()}
	if info.Flags&unix.IFF_TAP == 0 || info.Flags&unix.IFF_VNET_HDR == 0 || info.Flags&unix.IFF_NO_PI == 0 {
		return info, fmt.Errorf("%s must be a TAP with IFF_VNET_HDR and IFF_NO_PI, has flags %#x", info.Name, info.Flags)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return info, err
	}
	if err := setHeader(fd); err != nil {
		return info, err
	}
	info.Offloads, info.Refused, err = setOffloads(fd, want)
	return info, err
}

// setFlags attaches fd to the TAP called name, with the virtio-net header and all offloads that the kernel accepts.
func setFlags(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface name %q: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return os.NewSyscallError("TUNSETIFF", err)
	}
	if err := setHeader(fd); err != nil {
		return err
	}
	_, _, err = setOffloads(fd, AllOffloads)
	return err
}

func setHeader(fd int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, packet.VNetHdrLen); err != nil {
		return os.NewSyscallError("TUNSETVNETHDRSZ", err)
	}
	return os.NewSyscallError("TUNSETVNETLE", unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 1))
}

// setOffloads asks the kernel for want, and leaves out one offload after the other until the kernel accepts the rest.
func setOffloads(fd int, want Offloads) (Offloads, []Refusal, error) {
	if want&Csum == 0 {
		want = 0
	}
	var refused []Refusal
	var err error
	for _, less := range []Offloads{0, USO, TSO6, TSO4, AllOffloads} {
		if less &= want; less != 0 {
			refused = append(refused, Refusal{less, err})
			want &^= less
		}
		if err = os.NewSyscallError("TUNSETOFFLOAD", unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(want))); err == nil {
			return want, refused, nil
		}
	}
	return 0, nil, err
}

// own sets which user may attach later, and whether the device outlives its descriptors.
func own(f *os.File, c Config) error {
	persist := 0
	if c.Persist {
		persist = 1
	}
	var err error
	cerr := control(f, func(fd int) {
		if c.Owner >= 0 {
			err = os.NewSyscallError("TUNSETOWNER", unix.IoctlSetInt(fd, unix.TUNSETOWNER, c.Owner))
		}
		if err == nil {
			err = os.NewSyscallError("TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, persist))
		}
	})
	return errors.Join(err, cerr)
}
