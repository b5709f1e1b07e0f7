package fdpass

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// users is one user, or none.
type users struct {
	uid uint32
	any bool
}

func (u users) has(uid uint32) bool { return u.any && u.uid == uid }

// unmapped returns the number under which the kernel shows this process all users whom its user namespace does not know
// (user_namespaces(7), "Unmapped user and group IDs"). A user with this number may be anybody, so none is admitted.
func unmapped() users {
	table, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return users{} // the kernel has no user namespaces
	}
	number, _ := os.ReadFile("/proc/sys/kernel/overflowuid")
	return unmappedOf(string(table), string(number))
}

// unmappedOf parses the texts of uid_map and overflowuid. A namespace that maps as many users as the initial one knows
// all users.
func unmappedOf(table, number string) users {
	known := uint64(0)
	for line := range strings.Lines(table) {
		var inside, outside, n uint64
		if k, _ := fmt.Sscan(line, &inside, &outside, &n); k == 3 {
			known += n
		}
	}
	u := users{uid: 65534, any: known < 1<<32-1}
	_, _ = fmt.Sscan(number, &u.uid) // otherwise the usual number stays
	return u
}

// believe returns an error when the process that listens at path may be a stranger's that got there first.
func believe(path string, peer Cred) error {
	if peer.UID == 0 || int(peer.UID) == os.Geteuid() {
		return nil
	}
	var st unix.Stat_t
	dir := filepath.Dir(path)
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at the directory of %s: %w", path, err)
	}
	if st.Mode&0o002 != 0 {
		return fmt.Errorf("user %d listens on %s, and everybody may write %s: expected root or this user there, or a directory that others may not write", peer.UID, path, dir)
	}
	return nil
}
