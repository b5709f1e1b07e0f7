package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"tapestry.dev/tapestry/test/kubernetes/image"
	"tapestry.dev/tapestry/test/kubernetes/node"
)

// Apply deploys Tapestry.
type Apply struct {
	// Bin has tapestry and tapestry-cni.
	Bin string
	// Manifest is the file that the cluster gets, as a user would apply it, but for the API server's address.
	Manifest string
	// Timeout is how long the nodes may take until they are Ready.
	Timeout time.Duration
}

// DefaultTimeout is generous: it takes seconds.
func (Apply) DefaultTimeout() time.Duration { return 2 * time.Minute }

// Apply gives all nodes the image, applies the manifest, and returns when all nodes and all agents are Ready. The image's tag
// tells what is in it: a later Apply of other programs is an update, which replaces the agents' pods.
func (l Lab) Apply(ctx context.Context, a Apply) error {
	s, err := l.State()
	if err != nil {
		return err
	}
	manifest, err := os.ReadFile(a.Manifest)
	if err != nil {
		return err
	}
	if manifest, err = forThisCluster(manifest, fmt.Sprintf("https://%s:%d", s.Nodes[0].Addrs[0], APIPort)); err != nil {
		return fmt.Errorf("%s: %w", a.Manifest, err)
	}
	tag, err := imageOf(manifest)
	if err != nil {
		return fmt.Errorf("%s: %w", a.Manifest, err)
	}
	began := time.Now()
	im, err := image.Cache(l.Cache()).Tapestry(a.Bin, filepath.Join(l.Bin, "loopback"))
	if err != nil {
		return fmt.Errorf("pack the image %s: %w: build it with \"make build kubernetes-binaries\"", tag, err)
	}
	im.Tags = []string{tag + "-" + im.ID(), tag} // the latter is what the manifest that uninstalls names
	manifest = bytes.ReplaceAll(manifest, []byte(tag), []byte(im.Tags[0]))
	if err := l.give(ctx, s, "tapestry", im); err != nil {
		return err
	}
	slog.Info("the nodes have the image", "image", im.Tags[0], "took", time.Since(began).Round(10*time.Millisecond))
	began = time.Now()
	if err := l.kubectl(ctx, s, manifest, "apply", "--server-side", "--filename=-"); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"wait", "--for=condition=Ready", "nodes", "--all"},
		{"--namespace=kube-system", "rollout", "status", "daemonset/tapestry"},
	} {
		if err := l.kubectl(ctx, s, nil, append(args, "--timeout="+a.Timeout.String())...); err != nil {
			return errors.Join(err, l.explain(ctx, s))
		}
	}
	slog.Info("nodes and agents are Ready", "took", time.Since(began).Round(10*time.Millisecond))
	return nil
}

// give packs the image, into an archive of that name, and imports it on every node.
func (l Lab) give(ctx context.Context, s State, name string, im image.Image) error {
	archive, err := image.Archive(l.Images(), name, []image.Image{im})
	if err != nil {
		return err
	}
	for _, n := range s.Nodes {
		argv, err := s.Inside(n.Name, "ctr", "--address", node.Socket, "--namespace", "k8s.io", "images", "import", archive)
		if err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("import %s on %s: %w: %s", archive, n.Name, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

var imageLine = regexp.MustCompile(`(?m)^\s*(?:- )?image:\s*"?([^"\s]+)"?\s*$`)

// imageOf is the one image that the manifest names.
func imageOf(manifest []byte) (string, error) {
	found := ""
	for _, m := range imageLine.FindAllSubmatch(manifest, -1) {
		switch name := string(m[1]); found {
		case "", name:
			found = name
		default:
			return "", fmt.Errorf("there are two images, %s and %s: all containers should have the same", found, name)
		}
	}
	if found == "" {
		return "", errors.New("no container has an image")
	}
	return found, nil
}

// placeholder is the API server's address in the manifest, which everybody has to replace by their own.
var placeholder = regexp.MustCompile(`--api-server=[^\s"']+`)

func forThisCluster(manifest []byte, server string) ([]byte, error) {
	if !placeholder.Match(manifest) {
		return nil, errors.New("no container has --api-server=ADDRESS, where this cluster's address has to be")
	}
	return placeholder.ReplaceAll(manifest, []byte("--api-server="+server)), nil
}

// kubectl runs it, with in as its standard input, and its output here.
func (l Lab) kubectl(ctx context.Context, s State, in []byte, args ...string) error {
	argv, err := l.KubectlCommand(s, args...)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// explain shows why nodes may not be Ready. What it returns is no more than that it could not.
func (l Lab) explain(ctx context.Context, s State) error {
	return errors.Join(
		l.kubectl(ctx, s, nil, "get", "nodes,pods", "--all-namespaces", "--output=wide"),
		l.kubectl(ctx, s, nil, "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
	)
}
