package baseline

import (
	"context"
	"os"
	"os/exec"

	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/tap"
)

// makePeers is the command that builds the programs that Debian has no package of.
const makePeers = "make peers"

// daemon starts a program that ends when p is closed.
func (p *pair) daemon(ns *tap.Namespace, cmd *exec.Cmd, ready func(context.Context) error) error {
	d, err := process.StartDaemon(ns, cmd, ready)
	if err != nil {
		return err
	}
	p.closers = append(p.closers, d)
	return nil
}

// tempDir makes a directory that is removed when p is closed.
func (p *pair) tempDir() (string, error) {
	dir, err := os.MkdirTemp("", "tapestry-bench-*")
	if err != nil {
		return "", err
	}
	p.closers = append(p.closers, closerFunc(func() error { return os.RemoveAll(dir) }))
	return dir, nil
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }
