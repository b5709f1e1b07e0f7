package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

var created = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func image() Image {
	im := Image{
		Name: "example.com/a/b", Tag: "v1.2.0", Created: created,
		Config: Config{User: "65532:65532", Entrypoint: []string{"/two"}, Labels: map[string]string{"k": "v"}},
	}
	for _, arch := range []string{"amd64", "arm64"} {
		im.Platforms = append(im.Platforms, Platform{Arch: arch, Layers: []Layer{
			{{Name: "one", Content: []byte("one of " + arch)}},
			{{Name: "two", Content: bytes.Repeat([]byte("two of "+arch), 10000)}, {Name: "a", Content: []byte("shared")}},
		}})
	}
	return im
}

func packed(t *testing.T, im Image) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, im); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// entries reads a tar file, and checks that nothing in it depends on this machine or this moment.
func entries(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || !h.ModTime.Equal(created) {
			t.Errorf("%s belongs to %d %q, %d %q, and is of %v", h.Name, h.Uid, h.Uname, h.Gid, h.Gname, h.ModTime)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		if all[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

// reader follows descriptors, like a program that imports an archive.
type reader struct {
	t     *testing.T
	files map[string][]byte
	used  map[string]bool
}

func (r *reader) file(name string, into any) []byte {
	r.t.Helper()
	content, ok := r.files[name]
	if !ok {
		r.t.Fatalf("there is no %s", name)
	}
	r.used[name] = true
	if into != nil {
		if err := json.Unmarshal(content, into); err != nil {
			r.t.Fatalf("%s: %v", name, err)
		}
	}
	return content
}

func (r *reader) blob(d descriptor, mediaType string, into any) []byte {
	r.t.Helper()
	content := r.file(blobPath(d), into)
	if d.MediaType != mediaType || d.Size != len(content) || d.Digest != digestOf(content) {
		r.t.Errorf("a descriptor says %+v of a %s with %d bytes and %s", d, mediaType, len(content), digestOf(content))
	}
	return content
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

type manifest struct {
	Config descriptor
	Layers []descriptor
}

type config struct {
	Architecture, OS, Variant string
	Created                   time.Time
	Config                    Config
	RootFS                    rootFS
}

// platform reads an architecture's manifest, and returns the files of its image.
func (r *reader) platform(d descriptor, arch string) map[string]string {
	r.t.Helper()
	var m manifest
	r.blob(d, typeManifest, &m)
	var c config
	r.blob(m.Config, typeConfig, &c)
	if c.Architecture != arch || c.OS != "linux" || d.Platform == nil || d.Platform.Architecture != arch || c.Variant != d.Platform.Variant {
		r.t.Errorf("%s: the configuration is for %s %s %s, the descriptor for %+v", arch, c.OS, c.Architecture, c.Variant, d.Platform)
	}
	if c.Config.User != "65532:65532" || !slices.Equal(c.Config.Entrypoint, []string{"/two"}) || c.Config.Labels["k"] != "v" || !c.Created.Equal(created) {
		r.t.Errorf("%s: the configuration is %+v", arch, c)
	}
	files := map[string]string{}
	for i, l := range m.Layers {
		z, err := gzip.NewReader(bytes.NewReader(r.blob(l, typeLayer, nil)))
		if err != nil {
			r.t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			r.t.Fatal(err)
		}
		if i >= len(c.RootFS.DiffIDs) || c.RootFS.DiffIDs[i] != digestOf(plain) {
			r.t.Errorf("%s: layer %d is %s, the configuration has %v", arch, i, digestOf(plain), c.RootFS.DiffIDs)
		}
		for name, content := range entries(r.t, bytes.NewReader(plain)) {
			files[name] = string(content)
		}
	}
	return files
}

// TestWrite reads an archive twice, like containerd and like an old Docker, and finds the same content.
func TestWrite(t *testing.T) {
	r := &reader{t, entries(t, bytes.NewReader(packed(t, image()))), map[string]bool{}}
	var layout struct{ ImageLayoutVersion string }
	var top, index struct{ Manifests []descriptor }
	if r.file("oci-layout", &layout); layout.ImageLayoutVersion != "1.0.0" {
		t.Errorf("the layout's version is %q", layout.ImageLayoutVersion)
	}
	if r.file("index.json", &top); len(top.Manifests) != 1 {
		t.Fatalf("there are %d images", len(top.Manifests))
	}
	if a := top.Manifests[0].Annotations; a[containerdName] != "example.com/a/b:v1.2.0" || a[refName] != "v1.2.0" {
		t.Errorf("the image is called %v", a)
	}
	r.blob(top.Manifests[0], typeIndex, &index)
	if len(index.Manifests) != 2 {
		t.Fatalf("it has %d architectures", len(index.Manifests))
	}
	var docker []dockerEntry
	r.file("manifest.json", &docker)
	for i, arch := range []string{"amd64", "arm64"} {
		files := r.platform(index.Manifests[i], arch)
		if len(files) != 3 || files["one"] != "one of "+arch || !strings.HasPrefix(files["two"], "two of "+arch) || files["a"] != "shared" {
			t.Errorf("%s: the files are %.60v", arch, files)
		}
		var m manifest
		r.blob(index.Manifests[i], typeManifest, &m)
		want := dockerEntry{Config: blobPath(m.Config), RepoTags: []string{"example.com/a/b:v1.2.0-" + arch}}
		for _, l := range m.Layers {
			want.Layers = append(want.Layers, blobPath(l))
		}
		if arch == "amd64" {
			want.RepoTags = append(want.RepoTags, "example.com/a/b:v1.2.0")
		}
		if d := docker[i]; d.Config != want.Config || !slices.Equal(d.Layers, want.Layers) || !slices.Equal(d.RepoTags, want.RepoTags) {
			t.Errorf("%s: Docker reads %+v, want %+v", arch, d, want)
		}
	}
	for name := range r.files {
		if !r.used[name] {
			t.Errorf("nobody reads %s", name)
		}
	}
}

// TestSame: the same image makes the same archive, and another tag makes another archive.
func TestSame(t *testing.T) {
	first := packed(t, image())
	im := image()
	slices.Reverse(im.Platforms[0].Layers[1]) // the order in which a layer's files are named does not matter
	if !bytes.Equal(first, packed(t, im)) {
		t.Error("the same image is packed otherwise")
	}
	im.Tag = "v1.2.1"
	if bytes.Equal(first, packed(t, im)) {
		t.Error("another tag makes no difference")
	}
}

func TestRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Image)
		want string
	}{
		"no name":     {func(im *Image) { im.Name = "" }, "no name"},
		"tag":         {func(im *Image) { im.Tag = "v1+dirty" }, "is no tag"},
		"root":        {func(im *Image) { im.Config.User = "0:0" }, "neither of them root's"},
		"no user":     {func(im *Image) { im.Config.User = "" }, "expected a uid and a gid"},
		"no platform": {func(im *Image) { im.Platforms = nil }, "no architecture"},
		"empty layer": {func(im *Image) { im.Platforms[1].Layers[0] = nil }, "arm64: a layer without files"},
	} {
		im := image()
		c.edit(&im)
		if err := Write(io.Discard, im); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
