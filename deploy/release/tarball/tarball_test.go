package tarball

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

func TestWriter(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 890, time.FixedZone("here", 3600))
	write := func(at time.Time) []byte {
		var b bytes.Buffer
		w := New(&b, at)
		w.Directory("d/")
		w.File("d/f", 0o755, []byte("content"))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	first := write(at)
	if !bytes.Equal(first, write(at.UTC())) {
		t.Error("where the clock is makes a difference")
	}
	r := tar.NewReader(bytes.NewReader(first))
	for _, want := range []struct {
		name    string
		kind    byte
		content string
	}{{"d/", tar.TypeDir, ""}, {"d/f", tar.TypeReg, "content"}} {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil || h.Name != want.name || h.Typeflag != want.kind || string(content) != want.content || h.Mode != 0o755 {
			t.Errorf("got %+v %q, %v; want %+v", h, content, err, want)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || !h.ModTime.Equal(at.Truncate(time.Second)) {
			t.Errorf("%s tells of this machine: %+v", h.Name, h)
		}
	}
}

// Close returns the error of the first entry that cannot be written.
func TestWriterFails(t *testing.T) {
	w := New(io.Discard, time.Unix(0, 0))
	w.File(strings.Repeat("n", 300), 0o644, nil) // longer than a name may be (ustar)
	w.File("other", 0o644, nil)
	if err := w.Close(); err == nil {
		t.Error("a name that cannot be written is no error")
	}
}
