package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/version"
)

// begun is when this process began, nearly.
var begun = time.Now()

// detail is what there is to tell people about the node. It is called after the first snapshot.
func (a *agent) detail(ctx context.Context) (cni.Detail, error) {
	c, table := &a.node.Config().Netstack, a.node.Table()
	d := cni.Detail{
		Version: version.String(), Started: begun, Missing: a.health.Missing(ctx), Source: a.sourceText(), Updated: a.progress.Updated(),
		HostPort: a.node.HasHostPort(netip.Addr{}), Addresses: c.NodeAddrs, PodCIDRs: c.PodCIDRs, MTU: c.MTU, DNS: c.LocalAddrs,
		Services: len(table.Services()), NodePorts: len(table.NodePorts()), HostPorts: len(table.HostPorts()),
	}
	if server := a.source.State().Server; server != "" && a.agentConfig.source.manifests == "" {
		d.APIServer = "https://" + server
	}
	for _, s := range table.Services() {
		d.Endpoints += len(s.Endpoints)
	}
	for _, p := range a.node.Peers() {
		peer := cni.PeerDetail{
			Name: p.Name, Endpoint: p.Endpoint, HandshakeAge: p.HandshakeAge, AnswerAge: p.AnswerAge,
			Received: p.ReceivedBytes, Sent: p.SentBytes, MTU: p.MTU,
		}
		if !p.PublicKey.IsZero() {
			peer.PublicKey = p.PublicKey.String()
		}
		d.Peers = append(d.Peers, peer)
	}
	for _, p := range a.node.Ports() {
		d.Pods = append(d.Pods, cni.PodDetail{
			Name: p.Name, Addrs: p.Addrs, FromPackets: p.FromPackets, FromBytes: p.FromBytes, ToPackets: p.ToPackets, ToBytes: p.ToBytes,
			Lost: p.Down, Offloads: p.Offloads,
		})
	}
	return d, nil
}

// sourceText says where the cluster's objects come from, and since when they do not.
func (a *agent) sourceText() string {
	if dir := a.agentConfig.source.manifests; dir != "" {
		return "manifests in " + dir
	}
	h := a.source.State()
	text := "API server " + h.Server
	if h.Age > 0 {
		text += fmt.Sprintf(", not heard of for %s", h.Age.Round(time.Second))
	}
	if h.Err != nil {
		text += fmt.Sprintf(" (%v)", h.Err)
	}
	return text
}
