package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A Layer is a tar file in a Cache.
type Layer struct{ path, digest string }

// A Cache is a directory of layers.
type Cache string

// A File is one entry of a layer.
type File struct {
	// Name is the path in the image, without a leading slash. A name with a slash at the end is a directory.
	Name string
	// Source is the file with the content.
	Source string
	// Link, when not empty, makes the entry a symbolic link to this path.
	Link string
	// Body is the content when there is no Source.
	Body string
	// Mode is the mode of the entry; 0 is 0755.
	Mode int64
}

// Files returns the layer with these files in this order. All of them belong to root. A directory must come before its
// content.
func (c Cache) Files(files ...File) (Layer, error) {
	key := sha256.New()
	for _, f := range files {
		fmt.Fprintf(key, "%q %q %q %o\n", f.Name, f.Link, f.Body, f.Mode)
		if f.Source == "" {
			continue
		}
		if err := readFile(key, f.Source); err != nil {
			return Layer{}, err
		}
	}
	return c.layer("files-"+hex.EncodeToString(key.Sum(nil)), func(t *tar.Writer) error {
		for _, f := range files {
			if err := write(t, f); err != nil {
				return fmt.Errorf("%s: %w", f.Name, err)
			}
		}
		return nil
	})
}

func write(t *tar.Writer, f File) error {
	h := &tar.Header{Name: f.Name, Mode: f.Mode, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg, Size: int64(len(f.Body))}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	switch {
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
	case strings.HasSuffix(f.Name, "/"):
		h.Typeflag, h.Size = tar.TypeDir, 0
	case f.Source != "":
		s, err := os.Stat(f.Source)
		if err != nil {
			return err
		}
		h.Size = s.Size()
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if f.Source != "" {
		return readFile(t, f.Source)
	}
	_, err := io.WriteString(t, f.Body)
	return err
}

func readFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// Tree returns the layer known as key. If there is none yet, it makes one of the directory that fill returns.
func (c Cache) Tree(key string, fill func() (root string, err error)) (Layer, error) {
	return c.layer("tree-"+digest([]byte(key)), func(t *tar.Writer) error {
		root, err := fill()
		if err != nil {
			return err
		}
		return tree(t, root)
	})
}

// tree adds everything below root, with owners, modes and hard links, except sockets and devices.
func tree(t *tar.Writer, root string) error {
	linked := map[uint64]string{} // from inode to the name under which it was added
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := ""
		switch info.Mode().Type() {
		case fs.ModeSymlink:
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		case 0, fs.ModeDir:
		default:
			return nil
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name = name
		if d.IsDir() {
			h.Name += "/"
		}
		// Names would be looked up in this machine's own files.
		h.Uname, h.Gname = "", ""
		s := info.Sys().(*syscall.Stat_t)
		if h.Typeflag == tar.TypeReg && s.Nlink > 1 {
			if first, ok := linked[s.Ino]; ok {
				h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			}
			linked[s.Ino] = name
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			return readFile(t, path)
		}
		return nil
	})
}

// layer returns the layer called name. If there is none it makes one with fill.
func (c Cache) layer(name string, fill func(*tar.Writer) error) (Layer, error) {
	path := filepath.Join(string(c), name+".tar")
	known, err := os.ReadFile(path + ".sha256")
	if err == nil {
		return Layer{path, string(known)}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Layer{}, err
	}
	sum := sha256.New()
	err = whole(path, func(w io.Writer) error {
		t := tar.NewWriter(io.MultiWriter(w, sum))
		if err := fill(t); err != nil {
			return err
		}
		return t.Close()
	})
	if err != nil {
		return Layer{}, fmt.Errorf("make a layer: %w", err)
	}
	l := Layer{path, hex.EncodeToString(sum.Sum(nil))}
	// This comes last, since the file says that the layer is complete.
	return l, whole(path+".sha256", func(w io.Writer) error {
		_, err := io.WriteString(w, l.digest)
		return err
	})
}
