package lab

import (
	"os"
	"path/filepath"
	"testing"
)

// Where anybody may make files, somebody else may have been first. A link is not followed, though it leads to a folder
// of ours: where it leads next is not ours to say.
func TestFolderOfSomebodyElse(t *testing.T) {
	dir := t.TempDir()
	own, link, open, file := filepath.Join(dir, "own"), filepath.Join(dir, "link"), filepath.Join(dir, "open"), filepath.Join(dir, "file")
	for _, err := range []error{os.Mkdir(own, 0o700), os.Symlink(own, link), os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.WriteFile(file, nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]bool{own: true, link: false, open: false, file: false, filepath.Join(dir, "none"): false} {
		if err := ours(path); (err == nil) != want {
			t.Errorf("%s: %v, want %v", filepath.Base(path), err, want)
		}
	}
	// The link in the place of the folder: nothing is made behind it.
	runtime := filepath.Join(dir, "runtime")
	if err := os.Mkdir(runtime, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(own, filepath.Join(runtime, "tapestry")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	labs, err := DefaultStateDir()
	if err == nil && filepath.Dir(filepath.Dir(labs)) == runtime {
		t.Errorf("labs are in %s", labs)
	}
	if _, err := os.Stat(filepath.Join(own, "labs")); err == nil {
		t.Error("a folder was made behind the link")
	}
}
