package agent

import (
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/kube/cluster/clustertest"
)

// An agent has exactly one source, and its other flags fit to the source.
func TestSourceFlags(t *testing.T) {
	server := clustertest.New(t)
	kubeconfig := server.Kubeconfig()
	for _, tc := range []struct {
		args []string
		want string // of the error, "" for none
	}{
		{nil, "and has none: give either --manifests, or --api-server"},
		{[]string{"--manifests", "/m", "--api-server", "https://10.0.0.1:6443"}, "and has both"},
		{[]string{"--manifests", "/m", "--kubeconfig", kubeconfig}, "and has both"},
		{[]string{"--manifests", "/m"}, ""},
		{[]string{"--manifests", "/m", "--api-server-name", "x"}, "--api-server-name is about an API server"},
		{[]string{"--manifests", "/m", "--service-cidr", "10.0.0.0/8"}, "--service-cidr is about an API server"},
		{[]string{"--kubeconfig", kubeconfig}, ""},
		{[]string{"--kubeconfig", kubeconfig, "--api-server", server.URL, "--api-server", "https://10.0.0.1:6443", "--service-cidr", "10.96.0.0/12"}, ""},
		{[]string{"--kubeconfig", kubeconfig, "--api-server", "10.0.0.1"}, "expected one like https://10.0.0.1:6443"},
		{[]string{"--kubeconfig", kubeconfig, "--service-cidr", "10.96"}, "expected a range like 10.96.0.0/16"},
		{[]string{"--kubeconfig", kubeconfig, "--node-cidr", "192.168.0.0/16", "--node-cidr", "fd00::/8"}, ""},
		{[]string{"--kubeconfig", kubeconfig, "--node-cidr", "192.168.0.1"}, `--node-cidr "192.168.0.1": expected a range`},
		{[]string{"--kubeconfig", kubeconfig, "--node-cidr", "::ffff:192.168.0.0/112"}, "write this range as one of IPv4"},
		{[]string{"--manifests", "/m", "--node-cidr", "10.0.0.0/8"}, "--node-cidr is about an API server"},
		{[]string{"--api-server", server.URL}, "run as a pod with a service account, or name a kubeconfig"},
	} {
		c := agentConfig{node: "n1", state: t.TempDir()}
		var err error
		app := &cli.App{Writer: io.Discard, Flags: c.source.flags(), Action: func(*cli.Context) error {
			_, err = c.open(slog.New(slog.DiscardHandler), nil)
			return nil
		}}
		if err := app.RunContext(t.Context(), append([]string{"agent"}, tc.args...)); err != nil {
			t.Fatal(err)
		}
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want %q", tc.args, err, tc.want)
		}
	}
}
