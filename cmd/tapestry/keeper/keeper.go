// Package keeper is the command that holds a node's descriptors. It links nothing of the agent.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/fdpass"
	"tapestry.dev/tapestry/netstack/keeper"
)

// Command is "tapestry keeper".
func Command() *cli.Command {
	return &cli.Command{
		Name:  "keeper",
		Usage: "hold a node's descriptors while agents come and go",
		Description: `Holds what an agent cannot make again without cutting connections: the descriptors of TAPs, of the tunnel's
socket and of the flow memory. It serves only the processes on its socket, and needs no capability. It has to live as long as the
node's pods, because what it holds is lost when it ends.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", Usage: "`PATH` to listen on", Required: true},
			&cli.IntSliceFlag{Name: "uid", Usage: "`UID` that may connect, 0 for an init step that is root; repeatable", DefaultText: "this process's"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return cli.Exit("keeper takes no arguments: see 'tapestry keeper --help'", 2)
			}
			var uids []uint32
			for _, uid := range c.IntSlice("uid") {
				if uid < 0 || int64(uid) > 1<<32-2 {
					return fmt.Errorf("--uid %d is not the number of a user", uid)
				}
				uids = append(uids, uint32(uid))
			}
			return runKeeper(c.Context, c.String("socket"), uids)
		},
	}
}

// runKeeper serves a keeper until ctx is done.
func runKeeper(ctx context.Context, path string, uids []uint32) error {
	// The packages of this program allocate more at start than a keeper needs.
	debug.SetGCPercent(20)
	lock, err := lockKeeper(path + ".lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	mode := fs.FileMode(0o600)
	if len(uids) > 0 {
		mode = 0o660 // other users in this process's group can connect, and the keeper then checks who they are
	}
	ln, err := fdpass.Listen(path, mode)
	if err != nil {
		return err
	}
	k := keeper.New()
	defer k.Close()
	slog.Info("the keeper is ready", "socket", path, "uids", uids)
	debug.FreeOSMemory()
	if err := k.Serve(ctx, ln, keeper.Options{UIDs: uids, Log: slog.Default()}); err != nil {
		return err
	}
	slog.Info("the keeper ends and closes what it held")
	return nil
}

// lockKeeper makes this process the only keeper of its socket. A keeper replaces the socket of a dead keeper. Without
// the lock, two keepers that start at the same time could replace each other's socket.
func lockKeeper(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	switch err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		socket := strings.TrimSuffix(path, ".lock")
		err = fmt.Errorf("another keeper serves %s: stop it first, or give this one another --socket", socket)
	case err != nil:
		err = fmt.Errorf("lock %s: %w", path, err)
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}
