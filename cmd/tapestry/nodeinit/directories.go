package nodeinit

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// pingGroupRange is the file of the setting that says which groups may open ICMP echo sockets (icmp(7)). everyGroup is
// its value for all groups.
const (
	pingGroupRange = "/proc/sys/net/ipv4/ping_group_range"
	everyGroup     = "0 2147483647"
)

func groupFlag(into *int) cli.Flag {
	return &cli.IntFlag{Name: "group", Usage: "`GID` that may write the directories", DefaultText: "this process's", Value: os.Getegid(), Destination: into}
}

// Directories is "tapestry directories".
func Directories() *cli.Command {
	var user, group int
	return &cli.Command{
		Name:      "directories",
		Usage:     "make directories which a group may write",
		ArgsUsage: "DIR...",
		Description: "A hostPath directory is root's. This makes it one in which the keeper and the agent, which are not root, may make their\n" +
			"sockets and files. As root in the group it needs no capability.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "uid", Usage: "`UID` of the keeper and the agent: nothing is changed where files of another user are", DefaultText: "not asked", Value: anybody, Destination: &user},
			groupFlag(&group),
		},
		Action: func(ctx *cli.Context) error {
			if !ctx.Args().Present() {
				return cli.Exit("directories needs at least one directory", 2)
			}
			if err := belong(user, ctx.Args().Slice()...); err != nil {
				return err
			}
			for _, dir := range ctx.Args().Slice() {
				if err := makeDirectory(dir, group); err != nil {
					return err
				}
				slog.Info("the directory is there", "path", dir, "group", group)
			}
			return nil
		},
	}
}

// anybody is the user of belong to whom the files of all users belong.
const anybody = -1

// belong returns an error when a directory has files of somebody else than root and the user. Keeper and agent stay the
// user that they were at first: a keeper goes on over an update and believes nobody else, and nobody else reads the
// agent's files. If the directories were given to another group nevertheless, the agent that still runs could no longer
// write them. The directories are root's, so looking takes no capability.
func belong(user int, dirs ...string) error {
	if user == anybody {
		return nil
	}
	for _, dir := range dirs {
		list, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find out whose files are in a directory of the agent: %w", err)
		}
		for _, entry := range list {
			var st unix.Stat_t
			path := filepath.Join(dir, entry.Name())
			err := unix.Lstat(path, &st)
			if errors.Is(err, fs.ErrNotExist) {
				continue // the agent replaces files
			}
			if err == nil {
				err = judge(&st, user)
			}
			if err != nil {
				return fmt.Errorf("%q: %w", path, err)
			}
		}
	}
	return nil
}

// judge returns an error when a file in a directory of the agent is somebody else's than root's and the user's.
func judge(st *unix.Stat_t, user int) error {
	if st.Uid == 0 || int64(st.Uid) == int64(user) {
		return nil
	}
	return fmt.Errorf("it is user %d's, who keeper and agent of this node are, or were, and user %d may neither ask that keeper nor read that file: "+
		"keep the user and the group (values user=%d,group=%d of the chart), or uninstall Tapestry first, with deploy/uninstall.yaml; nothing was changed", st.Uid, user, st.Uid, st.Gid)
}

// makeDirectory makes a directory that only its owner, which is this user, and the group may use. An owner may give a
// directory to any of its own groups, so this needs no capability (chown(2)).
func makeDirectory(path string, group int) error {
	if err := os.MkdirAll(path, 0o770); err != nil {
		return fmt.Errorf("make a directory for the agent: %w", err)
	}
	err := os.Chown(path, -1, group)
	if err == nil {
		err = os.Chmod(path, 0o770) // MkdirAll applies the umask, or the directory existed already
	}
	if err != nil {
		return fmt.Errorf("let group %d write a directory: %w: it must belong to this user, who must be in the group", group, err)
	}
	return nil
}

// allowPings changes the setting in file, unless it allows the group already. Inside a user namespace the kernel
// accepts no range with unmapped groups; allowPings then allows only this group.
func allowPings(file string, group int) error {
	if b, err := os.ReadFile(file); err == nil {
		var first, last int
		if _, err := fmt.Sscan(string(b), &first, &last); err == nil && first <= group && group <= last {
			return nil
		}
	}
	err := os.WriteFile(file, []byte(everyGroup), 0)
	if errors.Is(err, syscall.EINVAL) {
		return os.WriteFile(file, fmt.Appendf(nil, "%d %d", group, group), 0)
	}
	return err
}
