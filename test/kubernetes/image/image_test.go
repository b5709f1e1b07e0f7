package image

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func write1(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// entries reads a tar file. It returns from each name to the content, the link, or "/" for a directory.
func entries(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			all[h.Name] = "/"
		case tar.TypeSymlink:
			all[h.Name] = "symlink " + h.Linkname
		case tar.TypeLink:
			all[h.Name] = "link " + h.Linkname
		default:
			all[h.Name] = string(body)
		}
	}
}

func TestFilesAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	c := Cache(filepath.Join(dir, "cache"))
	source := write1(t, filepath.Join(dir, "program"), "one")
	files := []File{{Name: "bin/"}, {Name: "bin/p", Source: source}, {Name: "bin/q", Link: "p"}, {Name: "etc", Body: "x"}}
	first, err := c.Files(files...)
	if err != nil {
		t.Fatal(err)
	}
	got := entries(t, first.path)
	for name, want := range map[string]string{"bin/": "/", "bin/p": "one", "bin/q": "symlink p", "etc": "x"} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	before, err := os.Stat(first.path)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.Files(files...); err != nil || again != first {
		t.Errorf("again: %v, %v, want %v", again, err, first)
	}
	if after, err := os.Stat(first.path); err != nil || !os.SameFile(before, after) {
		t.Error("the layer was made twice")
	}
	write1(t, source, "two")
	if changed, err := c.Files(files...); err != nil || changed.digest == first.digest {
		t.Errorf("with other content: %v, %v", changed, err)
	}
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	write1(t, filepath.Join(root, "a/file"), "content")
	if err := os.Link(filepath.Join(root, "a/file"), filepath.Join(root, "a/other")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a/file", filepath.Join(root, "b")); err != nil {
		t.Fatal(err)
	}
	filled := 0
	fill := func() (string, error) { filled++; return root, nil }
	c := Cache(filepath.Join(dir, "cache"))
	l, err := c.Tree("key", fill)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Tree("key", fill); err != nil || filled != 1 {
		t.Errorf("filled %d times, %v", filled, err)
	}
	got := entries(t, l.path)
	for name, want := range map[string]string{"a/": "/", "a/file": "content", "a/other": "link a/file", "b": "symlink a/file"} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	c := Cache(filepath.Join(dir, "cache"))
	shared, err := c.Files(File{Name: "a", Body: "a"})
	if err != nil {
		t.Fatal(err)
	}
	images := []Image{{Tags: []string{"x:1", "y:1"}, Layers: []Layer{shared}}, {Tags: []string{"z:1"}, Layers: []Layer{shared}, Config: Config{Cmd: []string{"/a"}}}}
	path, err := Archive(dir, "all", images)
	if err != nil {
		t.Fatal(err)
	}
	got := entries(t, path)
	if len(got) != 4 { // a manifest, two configurations, one layer
		t.Errorf("%d entries: %v", len(got), got)
	}
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal([]byte(got["manifest.json"]), &manifest); err != nil {
		t.Fatal(err)
	}
	for i, m := range manifest {
		if _, ok := got[m.Config]; !ok || len(m.RepoTags) != len(images[i].Tags) || len(m.Layers) != 1 {
			t.Errorf("image %d: %+v", i, m)
		}
	}
	if again, err := Archive(dir, "all", images); err != nil || again != path {
		t.Errorf("again: %s, %v, want %s", again, err, path)
	}
	images[0].Tags[0] = "x:2"
	other, err := Archive(dir, "all", images)
	if err != nil || other == path {
		t.Errorf("with another tag: %s, %v", other, err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old archive: %v", err)
	}
}

func TestMirror(t *testing.T) {
	for name, c := range map[string]struct{ file, content, want string }{
		"one line":    {"sources.list", "# deb http://no/debian x\ndeb [signed-by=/x] http://a.example/debian bookworm main\n", "http://a.example/debian"},
		"deb822":      {"sources.list.d/debian.sources", "Types: deb\n# http://no/debian\nURIs: http://b.example/debian/\nSuites: bookworm\n", "http://b.example/debian/"},
		"others only": {"sources.list.d/x.list", "deb https://c.example/tools stable main\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			etc := t.TempDir()
			write1(t, filepath.Join(etc, c.file), c.content)
			got, err := mirror(etc)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("%q, %v, want %q", got, err, c.want)
			}
		})
	}
}
