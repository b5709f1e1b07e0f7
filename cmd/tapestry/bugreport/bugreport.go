// Package bugreport packs what an agent, and the machine that it is on, tell of themselves into one archive, for
// whoever is asked for help. It asks what "tapestry status" and "tapestry doctor" ask, reads no file that holds a
// secret, and takes out what looks like one all the same.
package bugreport

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"tapestry.dev/tapestry/cmd/output"
)

// most is how many bytes of one part go into an archive; a table of 50,000 pods has room. What is beyond is
// left out, and said.
const most = 16 << 20

// part is one file of an archive.
type part struct {
	name string
	// write writes the file. What it has written before an error stays.
	write func(ctx context.Context, w io.Writer) error
}

// pack writes an archive of parts to w, as tar in gzip, below a directory. A part that fails costs no other:
// contents.txt says what is missing and why. The error is that of w or ctx.
func pack(ctx context.Context, w io.Writer, directory string, now time.Time, parts []part) error {
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	add := func(name string, b []byte) error {
		err := archive.WriteHeader(&tar.Header{Name: directory + "/" + name, Mode: 0o644, Size: int64(len(b)), ModTime: now})
		if err == nil {
			_, err = archive.Write(b)
		}
		return err
	}
	var contents strings.Builder
	for _, p := range parts {
		b := limited{left: most}
		err := p.write(ctx, &b)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text := withoutSecrets(b.bytes)
		switch {
		case errors.Is(err, errFull):
			output.Line(&contents, fmt.Sprintf("%s: only its first %d bytes", p.name, most))
		case err != nil:
			output.Line(&contents, fmt.Sprintf("%s: %s", p.name, withoutSecrets([]byte(err.Error()))))
		default:
			output.Line(&contents, fmt.Sprintf("%s: whole", p.name))
		}
		if len(text) > 0 || err == nil {
			if err := add(p.name, text); err != nil {
				return err
			}
		}
	}
	if err := add("contents.txt", []byte(contents.String())); err != nil {
		return err
	}
	return errors.Join(archive.Close(), zip.Close())
}

var errFull = errors.New("there is no room for more")

// limited takes no more than so many bytes.
type limited struct {
	bytes []byte
	left  int
}

// Write writes what there is room for.
func (l *limited) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	l.bytes = append(l.bytes, b[:n]...)
	if n < len(b) {
		return n, errFull
	}
	return n, nil
}
