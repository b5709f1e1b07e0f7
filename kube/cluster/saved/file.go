package saved

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/kube"
)

// Load returns the objects of the kinds that the file at path holds for owner, and until when they were those of the
// API server. The error is fs.ErrNotExist when there is no file, and says otherwise why the file is left out.
func Load(path string, owner Owner, kinds []*kube.Kind) (kube.Objects, time.Time, error) {
	data, at, err := read(path)
	if err != nil {
		return kube.Objects{}, at, err
	}
	objs, err := decode(data, owner, withoutSecrets(kinds))
	return objs, at, err
}

func read(path string) (data []byte, modified time.Time, err error) {
	// A pipe would block the agent, and a link lead elsewhere.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, modified, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, modified, err
	}
	if err := trusted(info); err != nil {
		return nil, modified, err
	}
	if info.Size() > maxBytes {
		return nil, modified, errTooLarge
	}
	data = make([]byte, info.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, modified, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return data, info.ModTime(), nil
}

// trusted returns an error when somebody other than this user may have written the file.
func trusted(info fs.FileInfo) error {
	stat := info.Sys().(*syscall.Stat_t) // as os documents for Linux
	return judge(info.Mode(), int(stat.Uid), uint64(stat.Nlink), os.Geteuid())
}

// judge says why a file with that mode, owner and number of links is not believed by a process of the user self.
func judge(mode fs.FileMode, owner int, links uint64, self int) error {
	switch {
	case !mode.IsRegular():
		return errors.New("it is no regular file")
	case owner != self:
		return fmt.Errorf("it belongs to user %d, and not to the agent's user %d", owner, self)
	case mode.Perm()&0o022 != 0:
		return fmt.Errorf("others may write it: its mode is %#o", mode.Perm())
	case links != 1:
		return errors.New("it has a second name")
	}
	return nil
}
