package supervisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long the files must be unchanged before they are read.
	settle = 20 * time.Millisecond
	// emptyPatience is how long an empty file is taken for one that an editor is about to fill.
	emptyPatience = 200 * time.Millisecond
)

// watch returns a channel that holds one value and signals that the files may have changed. Unlike manifests.Watch it
// also accepts single files, and its caller applies all files or none.
func watch(ctx context.Context, paths []string, log *slog.Logger) (<-chan struct{}, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	relevant := func(name string) bool {
		return slices.Contains(paths, name) || slices.Contains(paths, filepath.Dir(name))
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("%w: expected a YAML file or a folder of them", err)
		}
		dir := path
		if !info.IsDir() {
			dir = filepath.Dir(path) // an editor may replace the file with another one
		}
		if err := w.Add(dir); err != nil {
			w.Close()
			return nil, fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	changes := make(chan struct{}, 1)
	go func() {
		defer w.Close()
		quiet := time.NewTimer(time.Hour)
		quiet.Stop()
		defer quiet.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-w.Events:
				if relevant(e.Name) {
					quiet.Reset(pause(e.Name))
				}
			case err := <-w.Errors:
				log.Warn("changes of the files may have been missed", "err", err)
				quiet.Reset(settle)
			case <-quiet.C:
				select {
				case changes <- struct{}{}:
				default:
				}
			}
		}
	}()
	return changes, nil
}

func pause(name string) time.Duration {
	if info, err := os.Stat(name); err == nil && info.Size() == 0 {
		return emptyPatience
	}
	return settle
}
