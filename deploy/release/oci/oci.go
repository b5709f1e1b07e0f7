// Package oci packs a container image for several architectures into one archive, without a daemon, a registry, or a
// base image.
//
// The archive is an OCI image layout (image-spec 1.0, image-layout.md), which containerd and newer Dockers read. It
// also has the manifest.json of "docker save", which older Dockers read. Both name the same blobs. The archive depends
// on the arguments alone: the same image makes the same archive, byte for byte.
package oci

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"time"

	"tapestry.dev/tapestry/deploy/release/tarball"
)

// Image is what Write packs.
type Image struct {
	// Name and Tag are its full name: "tapestry.dev/tapestry" and "v1.2.0".
	Name, Tag string
	// Created is the time of everything in the image.
	Created time.Time
	Config  Config
	// Platforms lists the architectures. A Docker without support for image indexes uses the first one as Tag. Such a
	// Docker also has each of them as Tag-ARCH.
	Platforms []Platform
}

// Config is how a container starts (image-spec, config.md).
type Config struct {
	// User is "uid:gid". Both must be numeric, and neither may be root's.
	User       string            `json:"User"`
	Entrypoint []string          `json:"Entrypoint"`
	Labels     map[string]string `json:"Labels,omitempty"`
}

// Platform is the content for one architecture, as Go calls it.
type Platform struct {
	Arch string
	// Layers are stacked, the first one at the bottom.
	Layers []Layer
}

// Layer has files that belong to root. A name without a directory is in the root directory.
type Layer []File

// File is an executable in the image.
type File struct {
	Name    string
	Content []byte
}

// The types of the blobs.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// The annotations of the index from which containerd and others take the name of an image that they import.
const (
	containerdName = "io.containerd.image.name"
	refName        = "org.opencontainers.image.ref.name"
)

var (
	validTag  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	validUser = regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`)
)

func (im *Image) check() error {
	switch {
	case im.Name == "":
		return errors.New("the image has no name")
	case !validTag.MatchString(im.Tag):
		return fmt.Errorf("%q is no tag: expected up to 128 letters, digits, '_', '.' and '-'", im.Tag)
	case !validUser.MatchString(im.Config.User):
		return fmt.Errorf("the image's user is %q: expected a uid and a gid as 60820:60820, neither of them root's", im.Config.User)
	case len(im.Platforms) == 0:
		return errors.New("the image has no architecture")
	}
	return nil
}

// descriptor points at a blob (image-spec, descriptor.md).
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// platformOf returns an architecture as indexes name it. They name arm64 with the variant v8.
func platformOf(arch string) *platform {
	p := &platform{Architecture: arch, OS: "linux"}
	if arch == "arm64" {
		p.Variant = "v8"
	}
	return p
}

// blobs has the content of the archive, by digest.
type blobs map[string][]byte

func (b blobs) add(mediaType string, content []byte) descriptor {
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	b[digest] = content
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(content)}
}

func (b blobs) addJSON(mediaType string, v any) (descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	return b.add(mediaType, text), nil
}

// blobPath returns a blob's path in the archive.
func blobPath(d descriptor) string { return "blobs/sha256/" + d.Digest[len("sha256:"):] }

// dockerEntry is one image in the manifest.json of "docker save".
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Write packs the image.
func Write(w io.Writer, im Image) error {
	if err := im.check(); err != nil {
		return err
	}
	all := blobs{}
	var manifests []descriptor
	var docker []dockerEntry
	for i, p := range im.Platforms {
		manifest, entry, err := all.platform(&im, p)
		if err != nil {
			return fmt.Errorf("pack the image for %s: %w", p.Arch, err)
		}
		entry.RepoTags = []string{im.Name + ":" + im.Tag + "-" + p.Arch}
		if i == 0 {
			entry.RepoTags = append(entry.RepoTags, im.Name+":"+im.Tag)
		}
		manifests, docker = append(manifests, manifest), append(docker, entry)
	}
	index, err := all.addJSON(typeIndex, indexOf(manifests))
	if err != nil {
		return err
	}
	index.Annotations = map[string]string{containerdName: im.Name + ":" + im.Tag, refName: im.Tag}
	t := tarball.New(w, im.Created)
	for _, f := range []struct {
		name string
		v    any
	}{
		{"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}},
		{"index.json", indexOf([]descriptor{index})},
		{"manifest.json", docker},
	} {
		text, err := json.Marshal(f.v)
		if err != nil {
			return err
		}
		t.File(f.name, 0o644, text)
	}
	t.Directory("blobs/")
	t.Directory("blobs/sha256/")
	for _, digest := range slices.Sorted(maps.Keys(all)) {
		t.File("blobs/sha256/"+digest, 0o644, all[digest])
	}
	return t.Close()
}

func indexOf(list []descriptor) any {
	return struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}{2, typeIndex, list}
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// platform adds the blobs of one architecture, and returns its manifest.
func (b blobs) platform(im *Image, p Platform) (descriptor, dockerEntry, error) {
	var layers []descriptor
	var entry dockerEntry
	root, past := rootFS{Type: "layers"}, []history{}
	for _, l := range p.Layers {
		l = slices.SortedFunc(slices.Values(l), func(x, y File) int { return cmp.Compare(x.Name, y.Name) })
		packed, diffID, err := pack(l, im.Created)
		if err != nil {
			return descriptor{}, entry, err
		}
		d := b.add(typeLayer, packed)
		layers = append(layers, d)
		entry.Layers = append(entry.Layers, blobPath(d))
		root.DiffIDs = append(root.DiffIDs, diffID)
		past = append(past, history{im.Created.UTC(), l[0].Name})
	}
	config, err := b.addJSON(typeConfig, struct {
		*platform
		Created time.Time `json:"created"`
		Config  Config    `json:"config"`
		RootFS  rootFS    `json:"rootfs"`
		History []history `json:"history"`
	}{platformOf(p.Arch), im.Created.UTC(), im.Config, root, past})
	if err != nil {
		return descriptor{}, entry, err
	}
	entry.Config = blobPath(config)
	manifest, err := b.addJSON(typeManifest, struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, typeManifest, config, layers})
	manifest.Platform = platformOf(p.Arch)
	return manifest, entry, err
}

// pack returns a layer's blob and its diff ID, the digest of the uncompressed layer, which configurations refer to.
func pack(l Layer, created time.Time) (packed []byte, diffID string, err error) {
	if len(l) == 0 {
		return nil, "", errors.New("a layer without files")
	}
	var out bytes.Buffer
	sum := sha256.New()
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, "", err
	}
	t := tarball.New(io.MultiWriter(z, sum), created)
	for _, f := range l {
		t.File(f.Name, 0o755, f.Content)
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return nil, "", err
	}
	return out.Bytes(), "sha256:" + hex.EncodeToString(sum.Sum(nil)), nil
}
