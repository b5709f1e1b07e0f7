// Package tarball writes tar files that do not depend on the machine or the time: all entries belong to root and have
// the same time.
package tarball

import (
	"archive/tar"
	"io"
	"time"
)

// Writer writes one tar file. After an error all further calls do nothing, and Close returns the error.
type Writer struct {
	tar  *tar.Writer
	time time.Time
	err  error
}

// New begins a tar file. All entries have the time t, truncated to seconds.
func New(w io.Writer, t time.Time) *Writer {
	return &Writer{tar: tar.NewWriter(w), time: t.Truncate(time.Second)}
}

// File adds a file.
func (w *Writer) File(name string, mode int64, content []byte) {
	w.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content)
}

// Directory adds a directory. The name must end in a slash.
func (w *Writer) Directory(name string) {
	w.add(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, nil)
}

func (w *Writer) add(h *tar.Header, content []byte) {
	if w.err != nil {
		return
	}
	h.ModTime, h.Format = w.time, tar.FormatUSTAR
	if w.err = w.tar.WriteHeader(h); w.err == nil {
		_, w.err = w.tar.Write(content)
	}
}

// Close ends the file, and returns the first error of all calls.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	return w.tar.Close()
}
