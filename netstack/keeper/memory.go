package keeper

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// NewMemory makes size bytes of zeroed anonymous shared memory. Its size is sealed, because a file that shrinks would
// kill every process that has it mapped. The name is shown in /proc only.
func NewMemory(name string, size int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make shared memory %s: %w", name, err)
	}
	if err = unix.Ftruncate(fd, int64(size)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("size shared memory %s to %d bytes: %w", name, size, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Map maps memory that NewMemory made, for reading and writing. The mapping is shared with everyone who maps the
// memory. f may be closed afterwards. Memory whose size is not sealed is refused. Unmap it with unix.Munmap.
func Map(f *os.File) ([]byte, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	var mem []byte
	if cerr := raw.Control(func(fd uintptr) { mem, err = mapSealed(int(fd)) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return mem, nil
}

func mapSealed(fd int) ([]byte, error) {
	const want = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || seals&want != want {
		return nil, fmt.Errorf("it is not shared memory of sealed size: %w", syscall.EINVAL)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}
