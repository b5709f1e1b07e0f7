package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tapestry.dev/tapestry/deploy/release/oci"
	"tapestry.dev/tapestry/deploy/release/sbom"
	"tapestry.dev/tapestry/deploy/release/tarball"
)

const (
	// repository is the image's name; the chart's value image.repository is the same.
	repository = "tapestry.dev/tapestry"
	// user is the user and group of containers by default; the chart's values user and group are the same.
	user = "60820:60820"
	// sums is the file with the checksums, in the format of sha256sum -c.
	sums = "SHA256SUMS"
)

// writeImage packs the image. Each program is a layer of its own, so that an update transfers only the programs that
// changed.
func (r *release) writeImage(path string, built map[string][]executable) error {
	im := oci.Image{
		Name: repository, Tag: r.name, Created: r.time,
		Config: oci.Config{User: user, Entrypoint: []string{"/tapestry"}, Labels: map[string]string{
			"org.opencontainers.image.title":       "tapestry",
			"org.opencontainers.image.description": "A userspace network for Kubernetes",
			"org.opencontainers.image.version":     r.version,
			"org.opencontainers.image.licenses":    "Apache-2.0",
		}},
	}
	for _, arch := range arches {
		p := oci.Platform{Arch: arch}
		for _, e := range built[arch] {
			if slices.Contains(inImage, e.program) {
				p.Layers = append(p.Layers, oci.Layer{{Name: e.name, Content: e.content}})
			}
		}
		im.Platforms = append(im.Platforms, p)
	}
	var out bytes.Buffer
	if err := oci.Write(&out, im); err != nil {
		return err
	}
	return writeFile(path, out.Bytes())
}

// writePrograms packs the programs of an architecture into a directory named dir.
func (r *release) writePrograms(path, dir string, list []executable) error {
	license, err := os.ReadFile(filepath.Join(r.root, "LICENSE"))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	t := tarball.New(z, r.time)
	t.Directory(dir + "/")
	t.File(dir+"/LICENSE", 0o644, license)
	for _, e := range list {
		t.File(dir+"/"+e.name, 0o755, e.content)
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return err
	}
	return writeFile(path, out.Bytes())
}

// writeBill writes the bill of materials of the programs.
func (r *release) writeBill(path string, built map[string][]executable) error {
	bill := sbom.Release{Name: "tapestry", Version: r.version, Created: r.time}
	for _, arch := range arches {
		for _, e := range built[arch] {
			info, err := buildinfo.Read(bytes.NewReader(e.content))
			if err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			bill.Programs = append(bill.Programs, sbom.Program{
				File: "linux-" + arch + "/" + e.name, SHA256: sha256.Sum256(e.content), Info: info, License: e.license,
			})
		}
	}
	var out bytes.Buffer
	if err := sbom.Write(&out, bill); err != nil {
		return err
	}
	return writeFile(path, out.Bytes())
}

// writeSums writes the checksums of files in dir.
func writeSums(dir string, files []string) error {
	var out bytes.Buffer
	for _, name := range slices.SortedFunc(slices.Values(files), cmp.Compare[string]) {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%x  %s\n", sha256.Sum256(content), name)
	}
	return writeFile(filepath.Join(dir, sums), out.Bytes())
}

// removeOld removes the files of an earlier release from dir, and nothing else.
func removeOld(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, sums))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		_, name, ok := strings.Cut(s.Text(), "  ")
		if !ok || name != filepath.Base(name) {
			return fmt.Errorf("%s in %s is not one of ours: choose another -out", sums, dir)
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Remove(filepath.Join(dir, sums))
}

// writeFile writes the file at path whole or not at all. It makes the directory.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
