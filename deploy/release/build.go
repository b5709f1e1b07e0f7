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

// arches are the architectures, as Go calls them.
var arches = []string{"amd64", "arm64"}

// program is one of the release.
type program struct {
	name string
	// module is the directory of the module that it is built in, and pkg its package.
	module, pkg string
	// license is that of what is ours.
	license string
}

// programs are all there are; inImage those that a node needs.
var (
	inImage = []program{
		{"loopback", "deploy/plugins", "github.com/containernetworking/plugins/plugins/main/loopback", ""},
		{"tapestry-cni", ".", "./cmd/tapestry-cni", "Apache-2.0"},
		{"tapestry", ".", "./cmd/tapestry", "Apache-2.0"},
	}
	programs = append(slices.Clip(inImage), program{"tapestry-lab", ".", "./cmd/tapestry-lab", "Apache-2.0"})
)

// executable is a program that was built.
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
	// Without -trimpath the directory is in the program, and with a build id, which is a hash of inputs, so is what
	// the cache was like.
	cmd := exec.CommandContext(ctx, r.golang, "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -buildid= -X tapestry.dev/tapestry/version.stamped="+r.version, "-o", path, p.pkg)
	cmd.Dir = filepath.Join(r.root, p.module)
	cmd.Env = environment(os.Environ(), arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// environment is that of a build: nothing that whoever makes the release may have set changes what comes out.
func environment(env []string, arch string) []string {
	fixed := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off"}
	out := slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		return slices.ContainsFunc(fixed, func(f string) bool { return strings.HasPrefix(e, f[:strings.IndexByte(f, '=')+1]) })
	})
	return append(out, fixed...)
}

// static sees to it that a program is for an architecture and needs nothing of the system it runs on.
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
