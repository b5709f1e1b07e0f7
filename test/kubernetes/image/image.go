// Package image packs container images without a registry and without a daemon. Layers are tar files in a cache, named
// by what they are made of. An archive of several images, in the format of "docker save" and "ctr images import", has
// each layer once.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// An Image is a stack of layers under one or several names.
type Image struct {
	// Tags are full names, such as registry.k8s.io/pause:3.10.1.
	Tags   []string
	Layers []Layer
	Config Config
}

// Config is how a container of the image starts.
type Config struct {
	Entrypoint []string `json:",omitempty"`
	Cmd        []string `json:",omitempty"`
	Env        []string `json:",omitempty"`
	User       string   `json:",omitempty"`
}

// created is the creation time of all images, so that the same input makes the same image.
const created = "2026-01-01T00:00:00Z"

// Archive writes the images into one file in dir and returns its path. The file name depends on the content: the same
// path always has the same images. Archive removes older archives of the same name.
func Archive(dir, name string, images []Image) (string, error) {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	type history struct {
		Created string `json:"created"`
	}
	var manifest []entry
	configs := map[string][]byte{}
	layers := map[string]Layer{}
	for _, im := range images {
		var diffs []string
		var past []history
		e := entry{RepoTags: im.Tags}
		for _, l := range im.Layers {
			diffs = append(diffs, "sha256:"+l.digest)
			past = append(past, history{created})
			e.Layers = append(e.Layers, l.digest+"/layer.tar")
			layers[l.digest] = l
		}
		config, err := json.Marshal(map[string]any{
			"architecture": "amd64", "os": "linux", "created": created, "config": im.Config,
			"rootfs": map[string]any{"type": "layers", "diff_ids": diffs}, "history": past,
		})
		if err != nil {
			return "", err
		}
		e.Config = digest(config) + ".json"
		configs[e.Config] = config
		manifest = append(manifest, e)
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%s.tar", name, digest(text)[:16]))
	if _, err := os.Stat(path); err == nil {
		return path, os.Chmod(path, 0o644) // root of a node's user namespace is not root here
	}
	err = whole(path, func(w io.Writer) error {
		t := tar.NewWriter(w)
		for name, config := range configs {
			if err := add(t, name, int64(len(config)), bytes.NewReader(config)); err != nil {
				return err
			}
		}
		for _, l := range layers {
			if err := addFile(t, l.digest+"/layer.tar", l.path); err != nil {
				return err
			}
		}
		if err := add(t, "manifest.json", int64(len(text)), bytes.NewReader(text)); err != nil {
			return err
		}
		return t.Close()
	})
	if err != nil {
		return "", fmt.Errorf("pack %s: %w", path, err)
	}
	old, _ := filepath.Glob(filepath.Join(dir, name+"-*.tar"))
	for _, o := range old {
		if o != path {
			os.Remove(o)
		}
	}
	return path, os.Chmod(path, 0o644)
}

func add(t *tar.Writer, name string, size int64, content io.Reader) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(t, content)
	return err
}

func addFile(t *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := f.Stat()
	if err != nil {
		return err
	}
	return add(t, name, s.Size(), f)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// whole writes the file at path. The file appears only when write succeeds.
func whole(path string, write func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
