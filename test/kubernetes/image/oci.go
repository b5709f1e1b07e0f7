package image

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Packed is an image in an archive that another program packed: an OCI layout with one image.
type Packed struct {
	Path string
	// Name is the full name. ID is short, and the same for the same content.
	Name, ID string
}

// Open reads an archive's index.
func Open(path string) (Packed, error) {
	p := Packed{Path: path}
	f, err := os.Open(path)
	if err != nil {
		return p, err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return p, fmt.Errorf("%s is no OCI layout: it has no index.json", path)
		}
		if err != nil {
			return p, fmt.Errorf("%s: %w", path, err)
		}
		if h.Name != "index.json" {
			continue
		}
		var index struct {
			Manifests []struct {
				Digest      string
				Annotations map[string]string
			}
		}
		if err := json.NewDecoder(r).Decode(&index); err != nil {
			return p, fmt.Errorf("%s: %w", path, err)
		}
		if len(index.Manifests) != 1 {
			return p, fmt.Errorf("%s has %d images, want one", path, len(index.Manifests))
		}
		m := index.Manifests[0]
		_, sum, _ := strings.Cut(m.Digest, ":")
		if p.Name = m.Annotations["io.containerd.image.name"]; p.Name == "" || len(sum) < 12 {
			return p, fmt.Errorf("%s: the image has no name", path)
		}
		p.ID = sum[:12]
		return p, nil
	}
}

// CopyTo copies the archive into dir, where other users may read it, and returns the copy. It removes older copies of
// the same name.
func (p Packed) CopyTo(dir, name string) (Packed, error) {
	out := p
	out.Path = filepath.Join(dir, name+"-"+p.ID+".tar")
	if _, err := os.Stat(out.Path); err == nil {
		return out, nil
	}
	err := whole(out.Path, func(w io.Writer) error { return readFile(w, p.Path) })
	if err != nil {
		return out, err
	}
	old, _ := filepath.Glob(filepath.Join(dir, name+"-*.tar"))
	for _, o := range old {
		if o != out.Path {
			os.Remove(o)
		}
	}
	return out, os.Chmod(out.Path, 0o644)
}
