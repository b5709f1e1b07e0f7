package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"tapestry.dev/tapestry/test/lab/rpc"
)

// Logs reads a log: of a pod ("name" or "namespace/name"), of a node's agent ("node/NAME"), or with "" of the
// supervisor. With follow it continues until ctx ends, which then is the log's end and not an error.
func (c *Client) Logs(ctx context.Context, of string, follow bool) (io.ReadCloser, error) {
	path := rpc.LogFile(c.Dir)
	namespace, name, qualified := strings.Cut(of, "/")
	switch {
	case of == "":
	case namespace == "node":
		path = rpc.NodeLog(c.Dir, name, "agent")
	case qualified:
		path = rpc.PodLog(c.Dir, namespace, name)
	default:
		path = rpc.PodLog(c.Dir, "default", of)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no log of %s: expected a pod that was started, node/NAME, or nothing for the lab itself", of)
	}
	if err != nil || !follow {
		return f, err
	}
	return &follower{ctx, f}, nil
}

// followPause is how long a follower waits at the end of its file.
const followPause = 50 * time.Millisecond

// follower reads a file that others append to.
type follower struct {
	ctx context.Context
	*os.File
}

// Read waits at the end of the file for more.
func (f *follower) Read(b []byte) (int, error) {
	for {
		n, err := f.File.Read(b)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		// A file that became shorter was begun again.
		if info, serr := f.Stat(); serr == nil {
			if at, _ := f.Seek(0, io.SeekCurrent); info.Size() < at {
				_, _ = f.Seek(0, io.SeekStart) // cannot fail for a regular file
				continue
			}
		}
		t := time.NewTimer(followPause)
		select {
		case <-f.ctx.Done():
			t.Stop()
			return 0, io.EOF
		case <-t.C:
		}
	}
}
