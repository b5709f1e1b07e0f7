package supervisor

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEmptyLogs(t *testing.T) {
	dir := t.TempDir()
	files := map[string]struct{ before, after int }{
		"pods/long.log": {101, 0}, "pods/short.log": {100, 100}, "nodes/n1/agent.log": {500, 0}, "nodes/n1/key": {500, 500},
	}
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, f.before), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := emptyLogs(dir, 100); err != nil {
		t.Fatal(err)
	}
	for name, f := range files {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() != int64(f.after) {
			t.Errorf("%s: %v, %v; want %d bytes", name, info.Size(), err, f.after)
		}
	}
}
