package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReleaseName(t *testing.T) {
	for version, want := range map[string]string{
		"v1.2.0": "1.2.0", "1.2.0": "1.2.0", "v1.2.0-rc.1": "1.2.0-rc.1",
		"v1.2.0-5-g798d9a51f3c2": "0.1.0", "v1.2.0-dirty": "0.1.0", "v1.2.0-rc.1-5-g798d9a5-dirty": "0.1.0",
		"798d9a51f3c2": "0.1.0", "development": "0.1.0", "": "0.1.0", "v1.2": "0.1.0",
	} {
		if got := releaseName(version, "0.1.0"); got != want {
			t.Errorf("%q is released as %q, want %q", version, got, want)
		}
	}
}

// newRelease returns a release of this repository.
func newRelease(t *testing.T, version string) *release {
	t.Helper()
	r := &release{root: "../..", out: t.TempDir(), version: version, golang: "go", time: time.Unix(1767225600, 0)}
	if err := r.complete(); err != nil {
		t.Fatal(err)
	}
	return r
}

// packedFiles reads a .tar.gz.
func packedFiles(t *testing.T, content []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
	}
}

// TestChart: the package is the chart with the release's version. It does not depend on other files in the directory or
// on times of files. A test of deploy/render checks that Helm can read it.
func TestChart(t *testing.T) {
	r := newRelease(t, "v9.8.7")
	first, err := r.chart.called(r.name).pack(r)
	if err != nil {
		t.Fatal(err)
	}
	files := packedFiles(t, first)
	for name, want := range map[string]string{
		"tapestry/Chart.yaml": "\nversion: 9.8.7\nappVersion: 9.8.7\n", "tapestry/values.yaml": "apiServers: []", "tapestry/templates/agent.yaml": "kind: DaemonSet",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s has no %q:\n%s", name, want, files[name])
		}
	}
	if files["tapestry/.helmignore"] != "" {
		t.Error("hidden files are in the package")
	}
	// Values of the chart that must agree with constants.
	uid, gid, _ := strings.Cut(user, ":")
	for _, want := range []string{"  repository: " + repository + "\n", "\nuser: " + uid + "\n", "\ngroup: " + gid + "\n"} {
		if !strings.Contains(files["tapestry/values.yaml"], want) {
			t.Errorf("values.yaml has no %q", want)
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(r.root, "deploy", "chart"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".swp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readChart(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.called(r.name).pack(r); err != nil || !bytes.Equal(first, again) {
		t.Errorf("a copy of the chart is packed otherwise: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, chartMeta), []byte("version: 1.0.0\nappVersion: 2.0.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readChart(dir); err == nil || !strings.Contains(err.Error(), "that are the same") {
		t.Errorf("versions that differ: %v", err)
	}
}

// TestBuildOne builds a program like a release, from two directories. The environment of this process must not matter.
func TestBuildOne(t *testing.T) {
	if !slices.Contains(arches, runtime.GOARCH) {
		t.Skip("no release is for " + runtime.GOARCH)
	}
	t.Setenv("GOFLAGS", "-tags=strange")
	t.Setenv("GOARCH", "riscv64")
	r := newRelease(t, "v9.8.7")
	plugin := inImage[slices.IndexFunc(inImage, func(p program) bool { return p.name == "tapestry-cni" })]
	path := filepath.Join(t.TempDir(), plugin.name)
	if err := r.buildOne(t.Context(), plugin, runtime.GOARCH, path); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := static(content, runtime.GOARCH); err != nil {
		t.Error(err)
	}
	if err := static(content, map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]); err == nil {
		t.Error("a program is taken for another architecture's")
	}
	if out, err := exec.Command(path, "--version").Output(); err != nil || string(out) != "tapestry-cni version v9.8.7\n" {
		t.Errorf("it says %q, %v", out, err)
	}
	root, err := filepath.Abs(r.root)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(content, []byte(root)) {
		t.Errorf("the program knows of %s", root)
	}
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" || strings.HasPrefix(s.Key, "vcs") {
			t.Errorf("the program was built with %s=%s", s.Key, s.Value)
		}
	}
}

func TestSums(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"b": "two", "a": "one", "other": "somebody else's"} {
		if err := writeFile(filepath.Join(dir, name), []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeSums(dir, []string{"b", "a"}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sha256sum", "--check", "--strict", sums)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "a: OK\nb: OK\n" {
		t.Errorf("sha256sum says %s, %v", out, err)
	}
	if err := removeOld(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("left are %v, %v", left, err)
	}
	if err := writeFile(filepath.Join(dir, sums), []byte("0  ../elsewhere\n")); err != nil {
		t.Fatal(err)
	}
	if err := removeOld(dir); err == nil || !strings.Contains(err.Error(), "not one of ours") {
		t.Errorf("a file outside was taken for ours: %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	t.Setenv(epochVariable, "yesterday")
	if err := run(t.Context(), []string{"-root", "../..", "image"}); err == nil || !strings.Contains(err.Error(), epochVariable) {
		t.Errorf("a time that is none: %v", err)
	}
	t.Setenv(epochVariable, "")
	for _, args := range [][]string{{"-root", "../.."}, {"-root", "../..", "everything"}, {"-root", "../..", "image", "chart"}} {
		if err := run(t.Context(), args); err == nil || !strings.Contains(err.Error(), "expected one of image, chart and all") {
			t.Errorf("%q: %v", args, err)
		}
	}
	if err := run(t.Context(), []string{"-root", t.TempDir(), "image"}); err == nil || !strings.Contains(err.Error(), "read the chart") {
		t.Errorf("outside of the repository: %v", err)
	}
}
