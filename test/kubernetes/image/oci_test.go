package image

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// layout writes a tar file with an index.json after another file.
func layout(t *testing.T, index string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range map[string]string{"oci-layout": "{}", "index.json": index} {
		if text == "" {
			continue
		}
		if err := add(w, name, int64(len(text)), strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return write1(t, filepath.Join(t.TempDir(), "image.tar"), b.String())
}

const named = `{"manifests":[{"digest":"sha256:0123456789abcdef","annotations":{"io.containerd.image.name":"x.example/y:1"}}]}`

func TestOpen(t *testing.T) {
	path := layout(t, named)
	p, err := Open(path)
	if want := (Packed{path, "x.example/y:1", "0123456789ab"}); err != nil || p != want {
		t.Errorf("got %+v, %v, want %+v", p, err, want)
	}
	for index, want := range map[string]string{
		"":                   "is no OCI layout",
		`{"manifests":[]}`:   "has 0 images",
		`{"manifests":[{}]}`: "has no name",
		"{":                  "unexpected EOF",
	} {
		if _, err := Open(layout(t, index)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", index, err, want)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "missing")); !os.IsNotExist(err) {
		t.Errorf("without a file: %v", err)
	}
}

func TestCopyTo(t *testing.T) {
	p, err := Open(layout(t, named))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	old := write1(t, filepath.Join(dir, "name-old.tar"), "")
	c, err := p.CopyTo(dir, "name")
	if err != nil || c.ID != p.ID || filepath.Dir(c.Path) != dir {
		t.Fatalf("got %+v, %v", c, err)
	}
	if again, err := Open(c.Path); err != nil || again != c {
		t.Errorf("the copy has %+v, %v, want %+v", again, err, c)
	}
	if s, err := os.Stat(c.Path); err != nil || s.Mode().Perm() != 0o644 {
		t.Errorf("the copy is %v, %v", s.Mode(), err)
	}
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("an older archive is still there: %v", err)
	}
}
