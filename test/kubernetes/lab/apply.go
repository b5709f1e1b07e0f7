package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"tapestry.dev/tapestry/test/kubernetes/image"
	"tapestry.dev/tapestry/test/kubernetes/node"
)

// Apply deploys Tapestry.
type Apply struct {
	// Image is the archive that "make image" makes.
	Image string
	// Manifest is the file that is applied, as a user would apply it, with the API server's address replaced.
	Manifest string
	// Timeout limits how long the nodes may take to become Ready.
	Timeout time.Duration
}

// DefaultTimeout is generous: it normally takes seconds.
func (Apply) DefaultTimeout() time.Duration { return 2 * time.Minute }

// Apply gives all nodes the image, applies the manifest, and returns when all nodes and all agents are Ready. The
// manifest gets a tag that depends on the image's content. A later Apply with another image is therefore an update,
// which replaces the agents' pods.
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
	packed, err := image.Open(a.Image)
	if err != nil {
		return fmt.Errorf("%w: pack the image with \"make image\"", err)
	}
	if packed.Name != tag {
		return fmt.Errorf("%s names the image %s, and %s has %s", a.Manifest, tag, a.Image, packed.Name)
	}
	if packed, err = packed.CopyTo(l.Images(), "tapestry"); err != nil {
		return err
	}
	called := tag + "-" + packed.ID
	manifest = bytes.ReplaceAll(manifest, []byte(tag), []byte(called))
	if err := l.ctr(ctx, s, "import", packed.Path); err != nil {
		return err
	}
	// The uninstall manifest names the image by its own tag.
	if err := l.ctr(ctx, s, "tag", "--force", tag, called); err != nil {
		return err
	}
	slog.Info("the nodes have the image", "image", called, "took", time.Since(began).Round(10*time.Millisecond))
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

// give packs the image into an archive with that name, and imports the archive on every node.
func (l Lab) give(ctx context.Context, s State, name string, im image.Image) error {
	archive, err := image.Archive(l.Images(), name, []image.Image{im})
	if err != nil {
		return err
	}
	return l.ctr(ctx, s, "import", archive)
}

// ctr runs "ctr images" on every node.
func (l Lab) ctr(ctx context.Context, s State, args ...string) error {
	for _, n := range s.Nodes {
		argv, err := s.Inside(n.Name, append([]string{"ctr", "--address", node.Socket, "--namespace", "k8s.io", "images"}, args...)...)
		if err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("ctr images %s on %s: %w: %s", strings.Join(args, " "), n.Name, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

var imageLine = regexp.MustCompile(`(?m)^\s*(?:- )?image:\s*"?([^"\s]+)"?\s*$`)

// imageOf returns the only image that the manifest names.
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

// placeholder matches the API server's address in the manifest, which every user must replace.
var placeholder = regexp.MustCompile(`--api-server=[^\s"']+`)

func forThisCluster(manifest []byte, server string) ([]byte, error) {
	if !placeholder.Match(manifest) {
		return nil, errors.New("no container has --api-server=ADDRESS, where this cluster's address must be")
	}
	return placeholder.ReplaceAll(manifest, []byte("--api-server="+server)), nil
}

// kubectl runs kubectl with in as its standard input, and shows its output.
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

// explain shows why nodes may not be Ready. Its error only means that it could not show this.
func (l Lab) explain(ctx context.Context, s State) error {
	return errors.Join(
		l.kubectl(ctx, s, nil, "get", "nodes,pods", "--all-namespaces", "--output=wide"),
		l.kubectl(ctx, s, nil, "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
	)
}
