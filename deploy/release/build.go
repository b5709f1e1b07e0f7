package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// arches lists the architectures of a release, with Go's names.
var arches = []string{"amd64", "arm64"}

// program is one program of the release.
type program struct {
	name string
	// module is the directory of the module in which the program is built. pkg is its package.
	module, pkg string
	// license is the license of Tapestry's own programs; it is empty for others.
	license string
}

// inImage lists the programs that a node needs, programs all of them.
var (
	inImage = []program{
		{"loopback", "deploy/plugins", "github.com/containernetworking/plugins/plugins/main/loopback", ""},
		{"tapestry-cni", ".", "./cmd/tapestry-cni", "Apache-2.0"},
		{"tapestry-bgp", ".", "./cmd/tapestry-bgp", "Apache-2.0"},
		{"tapestry-l2", ".", "./cmd/tapestry-l2", "Apache-2.0"},
		{"tapestry", ".", "./cmd/tapestry", "Apache-2.0"},
	}
	programs = append(slices.Clip(inImage), program{"tapestry-lab", ".", "./cmd/tapestry-lab", "Apache-2.0"})
)

// executable is a built program.
type executable struct {
	program
	content []byte
}

// build builds programs for all architectures.
func (r *release) build(ctx context.Context, list []program) (map[string][]executable, error) {
	dir, err := os.MkdirTemp("", "tapestry-release-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := map[string][]executable{}
	for _, arch := range arches {
		for _, p := range list {
			path := filepath.Join(dir, arch, p.name)
			if err := r.buildOne(ctx, p, arch, path); err != nil {
				return nil, fmt.Errorf("build %s for %s: %w", p.name, arch, err)
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			if err := static(content, arch); err != nil {
				return nil, fmt.Errorf("%s for %s: %w", p.name, arch, err)
			}
			out[arch] = append(out[arch], executable{p, content})
		}
	}
	return out, nil
}

func (r *release) buildOne(ctx context.Context, p program, arch, path string) error {
	// -trimpath keeps the directory out of the program. The empty build ID keeps out a hash of inputs, which depends on
	// the state of the cache.
	cmd := exec.CommandContext(ctx, r.golang, "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -buildid= -X tapestry.dev/tapestry/version.stamped="+r.version, "-o", path, p.pkg)
	cmd.Dir = filepath.Join(r.root, p.module)
	cmd.Env = environment(os.Environ(), arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// environment returns the environment of a build. No setting of whoever makes the release changes the result.
func environment(env []string, arch string) []string {
	fixed := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off"}
	out := slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		return slices.ContainsFunc(fixed, func(f string) bool { return strings.HasPrefix(e, f[:strings.IndexByte(f, '=')+1]) })
	})
	return append(out, fixed...)
}

// static returns an error unless a program is for arch and is linked statically.
func static(content []byte, arch string) error {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return err
	}
	if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]; f.Machine != want {
		return fmt.Errorf("it is for %v", f.Machine)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return errors.New("it is not static")
	}
	return nil
}
