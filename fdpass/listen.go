package fdpass

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen makes the socket at path. mode says whom the kernel lets connect: 0o600 only this user, 0o660 the group as
// well, 0o666 everybody; Serve checks who each of them is. Listen replaces the socket of a process that died, and
// nothing else.
func Listen(path string, mode fs.FileMode) (*net.UnixListener, error) {
	ln, err := bind(path, mode)
	if errors.Is(err, unix.EADDRINUSE) {
		if err := removeDead(path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
		ln, err = bind(path, mode)
	}
	if err != nil {
		return nil, err
	}
	if err := widen(path, mode); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// bind makes the socket with no more rights than mode, from its first moment on: the kernel gives the file the rights
// of the socket, less the umask (unix(7) does not say so, but unix_bind in the kernel does it).
func bind(path string, mode fs.FileMode) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode.Perm())) }); cerr != nil {
			return cerr
		}
		return os.NewSyscallError("fchmod", err)
	}}
	l, err := lc.Listen(context.Background(), "unixpacket", path)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// removeDead removes a socket on which nobody listens.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("what is there is not a socket: remove it, or choose another path")
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err == nil {
		c.Close()
		return errors.New("another process listens there; stop it first")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// widen gives the socket at path the rights that the umask took away. It changes nothing but a socket of this user:
// somebody who may write the directory may have put something else there meanwhile.
func widen(path string, mode fs.FileMode) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	switch want := uint32(mode.Perm()); {
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != os.Geteuid():
		return fmt.Errorf("listen on %s: somebody has replaced the socket that was made there", path)
	case st.Mode&0o777 == want:
		return nil
	default: // fchmod(2) does not accept an O_PATH descriptor
		return os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), fs.FileMode(want))
	}
}
