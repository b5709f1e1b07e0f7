package nodeinit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"github.com/urfave/cli/v2"
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
	var group int
	return &cli.Command{
		Name:      "directories",
		Usage:     "make directories which a group may write",
		ArgsUsage: "DIR...",
		Description: "A hostPath directory is root's. This makes it one in which the keeper and the agent, which are not root, may make their\n" +
			"sockets and files. As root in the group it needs no capability.",
		Flags: []cli.Flag{groupFlag(&group)},
		Action: func(ctx *cli.Context) error {
			if !ctx.Args().Present() {
				return cli.Exit("directories needs at least one directory", 2)
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
