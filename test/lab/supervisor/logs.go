package supervisor

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// maxLog is the size in bytes at which a log is emptied. A lab may be up for days with a pod that prints all the
	// time.
	maxLog      = 64 << 20
	logInterval = 5 * time.Second
)

// limitLogs empties logs in dir that have become too long, until ctx ends. All logs are opened with O_APPEND, so their
// writers continue at the new end.
func limitLogs(ctx context.Context, dir string, log *slog.Logger) {
	tick := time.NewTicker(logInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := emptyLogs(dir, maxLog); err != nil {
				log.Warn("cannot limit the logs", "err", err)
			}
		}
	}
}

func emptyLogs(dir string, limit int64) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasSuffix(path, ".log") {
			return nil // the file is gone
		}
		if info, err := d.Info(); err == nil && info.Size() > limit {
			return os.Truncate(path, 0)
		}
		return nil
	})
}
