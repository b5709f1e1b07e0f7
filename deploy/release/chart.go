package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"tapestry.dev/tapestry/deploy/release/tarball"
)

// chart is the Helm chart in the repository.
type chart struct {
	// version is the version of the chart and of the image that it names (appVersion).
	version string
	// files lists the chart's files in the order in which helm packs them. Names are paths inside the chart.
	files []chartFile
}

type chartFile struct {
	name    string
	content []byte
}

const chartMeta = "Chart.yaml"

// versionLines matches the lines of Chart.yaml that have a version.
var versionLines = regexp.MustCompile(`(?m)^(version|appVersion): *(\S+)$`)

// readChart reads the chart. It leaves out names that begin with a dot.
func readChart(dir string) (chart, error) {
	var c chart
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != dir && strings.HasPrefix(d.Name(), ".") {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return nil
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		c.files = append(c.files, chartFile{filepath.ToSlash(name), content})
		return err
	})
	if err != nil {
		return c, fmt.Errorf("read the chart: %w", err)
	}
	slices.SortFunc(c.files, func(a, b chartFile) int {
		// Chart.yaml comes first, so that Helm need not read the whole package to find it.
		return cmp.Or(-compareBool(a.name == chartMeta, b.name == chartMeta), cmp.Compare(a.name, b.name))
	})
	if len(c.files) == 0 || c.files[0].name != chartMeta {
		return c, fmt.Errorf("there is no %s in %s", chartMeta, dir)
	}
	lines := versionLines.FindAllSubmatch(c.files[0].content, -1)
	if len(lines) != 2 || !bytes.Equal(lines[0][2], lines[1][2]) {
		return c, fmt.Errorf("%s: expected a version and an appVersion that are the same", chartMeta)
	}
	c.version = string(lines[0][2])
	return c, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// called returns the chart with another version.
func (c chart) called(version string) chart {
	out := chart{version: version, files: slices.Clone(c.files)}
	out.files[0].content = versionLines.ReplaceAll(c.files[0].content, []byte("$1: "+version))
	return out
}

// A version is a release's when it is a semantic version and not what git describe prints for a commit after a release.
var (
	released = regexp.MustCompile(`^v?([0-9]+\.[0-9]+\.[0-9]+(?:-[0-9A-Za-z.-]+)?)$`)
	between  = regexp.MustCompile(`-[0-9]+-g[0-9a-f]+(-dirty)?$|-dirty$`)
)

// releaseName returns the version of the image and the chart.
func releaseName(version, ofChart string) string {
	if m := released.FindStringSubmatch(version); m != nil && !between.MatchString(version) {
		return m[1]
	}
	return ofChart
}

// pack makes a package like helm package: all files in a directory with the chart's name.
func (c chart) pack(r *release) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	t := tarball.New(z, r.time)
	for _, f := range c.files {
		t.File("tapestry/"+f.name, 0o644, f.content)
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// manifests lists the plain manifests, with the arguments of deploy/render that make each.
var manifests = map[string][]string{
	"tapestry.yaml":  {"-f", "../plain.yaml"},
	"uninstall.yaml": {"--set", "uninstall=true"},
}

// writeChart writes the chart's package and the manifests, and returns the names of the files.
func (r *release) writeChart(ctx context.Context) ([]string, error) {
	c := r.chart.called(r.name)
	packed, err := c.pack(r)
	if err != nil {
		return nil, err
	}
	file := "tapestry-" + r.name + ".tgz"
	if err := writeFile(filepath.Join(r.out, file), packed); err != nil {
		return nil, err
	}
	files := []string{file}
	for name, args := range manifests {
		cmd := exec.CommandContext(ctx, r.golang, slices.Concat([]string{"run", ".", "-chart", filepath.Join(r.out, file)}, args)...)
		cmd.Dir = filepath.Join(r.root, "deploy", "render")
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
		var said bytes.Buffer
		cmd.Stderr = &said
		text, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("render %s: %w: %s", name, err, strings.TrimSpace(said.String()))
		}
		if err := writeFile(filepath.Join(r.out, name), text); err != nil {
			return nil, err
		}
		files = append(files, name)
	}
	return files, nil
}
