package lab

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"tapestry.dev/tapestry/test/kubernetes/image"
	"tapestry.dev/tapestry/test/kubernetes/node"
)

//go:embed coredns.yaml
var corednsManifest []byte

// corednsImage is the image's name in that manifest.
const corednsImage = "registry.k8s.io/coredns/coredns:v1.15.0"

// ApplyReference deploys what Tapestry is compared with: the bridge plugin with static routes between the nodes,
// kube-proxy with nftables, and CoreDNS. coredns is the path of the program CoreDNS. The lab must have been brought up
// with Forward.
func (l Lab) ApplyReference(ctx context.Context, coredns string) error {
	s, err := l.State()
	if err != nil {
		return err
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return fmt.Errorf("kube-proxy runs nft: %w: install the package nftables", err)
	}
	began := time.Now()
	im, err := image.Cache(l.Cache()).Program(corednsImage, coredns)
	if err != nil {
		return fmt.Errorf("pack CoreDNS: %w: build it with \"make peers\"", err)
	}
	if err := l.give(ctx, s, "coredns", im); err != nil {
		return err
	}
	cidrs := map[string]*net.IPNet{}
	for _, n := range s.Nodes {
		if cidrs[n.Name], err = l.podCIDR(ctx, s, n); err != nil {
			return err
		}
	}
	group, err := l.cgroups()
	if err != nil {
		return err
	}
	for _, n := range s.Nodes {
		if err := routes(n, s.Nodes, cidrs); err != nil {
			return err
		}
		if err := l.kubeProxy(group, s, n); err != nil {
			return err
		}
		if err := l.bridgePlugin(ctx, s, n, cidrs[n.Name]); err != nil {
			return err
		}
	}
	if err := l.kubectl(ctx, s, corednsManifest, "apply", "--server-side", "--filename=-"); err != nil {
		return err
	}
	if err := l.kubectl(ctx, s, nil, "--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=2m"); err != nil {
		return errors.Join(err, l.explain(ctx, s))
	}
	slog.Info("the nodes are Ready, and so is CoreDNS", "took", time.Since(began).Round(10*time.Millisecond))
	return nil
}

func (l Lab) podCIDR(ctx context.Context, s State, n Node) (*net.IPNet, error) {
	argv, err := l.KubectlCommand(s, "get", "node", n.Name, "--output=jsonpath={.spec.podCIDR}")
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return nil, fmt.Errorf("podCIDR of %s: %w", n.Name, err)
	}
	_, cidr, err := net.ParseCIDR(strings.TrimSpace(string(out)))
	if err != nil {
		return nil, fmt.Errorf("podCIDR of %s: %w", n.Name, err)
	}
	return cidr, nil
}

// routes makes routes to the other nodes' pods through their nodes.
func routes(n Node, nodes []Node, cidrs map[string]*net.IPNet) error {
	ns, err := namespaceOf(n.PID)
	if err != nil {
		return err
	}
	defer ns.close()
	for _, other := range nodes {
		if other.Name == n.Name {
			continue
		}
		if err := ns.RouteReplace(&netlink.Route{Dst: cidrs[other.Name], Gw: net.ParseIP(other.Addrs[0])}); err != nil {
			return fmt.Errorf("route to the pods of %s: %w", other.Name, err)
		}
	}
	return nil
}

// kubeProxy starts kube-proxy in the node's namespaces. It ends with the lab.
func (l Lab) kubeProxy(group cgroups, s State, n Node) error {
	config := filepath.Join(l.nodeDir(n.Name), "kube-proxy.yaml")
	text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %s}
clusterCIDR: %s
hostnameOverride: %s
mode: nftables
conntrack: {maxPerCore: 0}
detectLocalMode: ClusterCIDR
`, filepath.Join(l.controlPlaneDir(), "kube-proxy.kubeconfig"), podCIDR, n.Name)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	argv, err := s.Inside(n.Name, filepath.Join(l.Bin, "kube-proxy"), "--config="+config, "--v=2")
	if err != nil {
		return err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	_, err = l.start(cmd, group, n.Name+"-kube-proxy")
	return err
}

// bridgePlugin installs the bridge plugin. The configuration comes last, since it makes the node Ready.
func (l Lab) bridgePlugin(ctx context.Context, s State, n Node, cidr *net.IPNet) error {
	for _, plugin := range []string{"bridge", "host-local", "loopback", "portmap"} {
		argv, err := s.Inside(n.Name, "cp", filepath.Join(l.Bin, plugin), node.CNIBin)
		if err != nil {
			return err
		}
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("install %s on %s: %w: %s", plugin, n.Name, err, out)
		}
	}
	argv, err := s.Inside(n.Name, "tee", filepath.Join(node.CNIConf, "10-reference.conflist"))
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "reference", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1500,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
`, cidr))
	return cmd.Run()
}
