package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Uninstall removes Tapestry as deploy/README.md says: with the manifest that Apply got, and the one for what remains
// on the nodes. It fails when something is left after that.
func (l Lab) Uninstall(ctx context.Context, manifest, uninstall string) error {
	s, err := l.State()
	if err != nil {
		return err
	}
	before, err := os.ReadFile(manifest)
	if err != nil {
		return err
	}
	after, err := os.ReadFile(uninstall)
	if err != nil {
		return err
	}
	began := time.Now()
	for _, step := range []struct {
		in   []byte
		args []string
	}{
		{before, []string{"delete", "--ignore-not-found", "--filename=-"}},
		{nil, []string{"--namespace=kube-system", "wait", "--for=delete", "pods", "--selector=app.kubernetes.io/name=tapestry", "--timeout=1m"}},
		{after, []string{"apply", "--server-side", "--filename=-"}},
		{nil, []string{"--namespace=kube-system", "rollout", "status", "daemonset/tapestry-uninstall", "--timeout=1m"}},
		{after, []string{"delete", "--filename=-"}},
		{nil, []string{"--namespace=kube-system", "wait", "--for=delete", "pods", "--selector=app.kubernetes.io/name=tapestry", "--timeout=1m"}},
	} {
		if err := l.kubectl(ctx, s, step.in, step.args...); err != nil {
			return err
		}
	}
	if err := l.left(ctx, s); err != nil {
		return err
	}
	slog.Info("nothing is left", "took", time.Since(began).Round(10*time.Millisecond))
	return nil
}

// leftovers prints what is left of Tapestry on a node, one line for each thing.
const leftovers = `ls -d /run/tapestry /opt/cni/bin/tapestry-cni /opt/cni/bin/loopback /opt/cni/bin/.tapestry* /etc/cni/net.d/*tapestry* 2>/dev/null
ls -A /var/lib/tapestry 2>/dev/null # the directory is a mount point of the lab's
ls -d /sys/class/net/tapestry0 2>/dev/null
ip route | grep -F tapestry0
ip -6 route | grep -F tapestry0
ss -Hlntu | grep -E ':(80|443|10249|10256|51820)\s'
pgrep -a tapestry
true`

// left fails when something of Tapestry is left on the nodes or in the cluster.
func (l Lab) left(ctx context.Context, s State) error {
	var errs []error
	for _, n := range s.Nodes {
		argv, err := s.Inside(n.Name, "sh", "-c", leftovers)
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if text := strings.TrimSpace(string(out)); err != nil || text != "" {
			errs = append(errs, fmt.Errorf("left on %s: %w:\n%s", n.Name, errors.Join(err, errLeft), text))
		}
	}
	argv, err := l.KubectlCommand(s, "get", "--all-namespaces", "--output=name", "--selector=app.kubernetes.io/name=tapestry",
		"all,serviceaccounts,clusterroles,clusterrolebindings,ingressclasses,validatingadmissionpolicies,validatingadmissionpolicybindings")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if text := strings.TrimSpace(string(out)); err != nil || text != "" {
		errs = append(errs, fmt.Errorf("left in the cluster: %w:\n%s", errors.Join(err, errLeft), text))
	}
	return errors.Join(errs...)
}

var errLeft = errors.New("an uninstalled Tapestry leaves nothing")
