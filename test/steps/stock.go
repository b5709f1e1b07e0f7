package steps

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/overlay"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// stockNode is a third node, whose tunnel is stock WireGuard. It is added by hand, as an operator would do it.
const stockNode = `---
apiVersion: v1
kind: Node
metadata:
  name: stock
  labels: {tapestry.dev/external: "true"}
  annotations:
    tapestry.dev/stock: "true"
    tapestry.dev/wireguard-public-key: %s
    tapestry.dev/wireguard-endpoint: 172.31.0.90:51820
spec: {podCIDRs: [10.244.90.0/24, "fd00:10:244:90::/64"]}
status: {addresses: [{type: InternalIP, address: 172.31.0.90}]}
`

func stockWireGuard(ctx context.Context, c *Cluster) (detail string, err error) {
	keyFile := filepath.Join(c.Dir, "stock.key")
	key, err := overlay.LoadOrCreateKey(keyFile)
	if err != nil {
		return "", err
	}
	before := ""
	if err := c.edit(ctx, func(file string) string {
		before = file
		return file + fmt.Sprintf(stockNode, key.Public())
	}); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.edit(ctx, func(string) string { return before })) }()
	public, err := c.publicKey("node-1")
	if err != nil {
		return "", err
	}
	own := pair{netip.MustParseAddr("10.244.90.2"), netip.MustParseAddr("fd00:10:244:90::2")}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	device, err := c.start(running, lab.Node("stock"), "stock-wireguard", "--key", keyFile, "--peer", public, "--endpoint", at(c.ips["node-1"].v4, 51820),
		"--address", own.v4.String(), "--address", own.v6.String(), "--allowed", "10.244.1.0/24", "--allowed", "fd00:10:244:1::/64")
	if err != nil {
		return "", err
	}
	defer device.stop(cancel)
	server, err := c.start(running, lab.Node("stock"), "serve-ready", "--name", "stock")
	if err != nil {
		return "", err
	}
	defer server.stop(cancel)
	err = families(func(v6 bool) error {
		for _, network := range []string{"tcp", "udp"} {
			if err := c.sees(ctx, lab.Node("stock"), network, at(c.ips["client"].of(v6), 9000), seen{"client", own.of(v6)}); err != nil {
				return fmt.Errorf("from the stock device: %w", err)
			}
			if err := c.sees(ctx, lab.Pod("client"), network, at(own.of(v6), 9000), seen{"stock", c.ips["client"].of(v6)}); err != nil {
				return fmt.Errorf("to the stock device: %w", err)
			}
		}
		return nil
	})
	return fmt.Sprintf("unmodified wireguard-go at %s and client talk both ways, TCP and UDP", own.v4), err
}

// publicKey returns the public key that a node's agent published.
func (c *Cluster) publicKey(node string) (string, error) {
	objs, err := manifests.Read(rpc.ObjectsDir(c.Dir))
	if err != nil {
		return "", err
	}
	for _, n := range objs.Nodes {
		if n.Name == node {
			return strings.TrimSpace(n.Annotations[kube.PublicKeyAnnotation]), nil
		}
	}
	return "", fmt.Errorf("node %s has published no key", node)
}
