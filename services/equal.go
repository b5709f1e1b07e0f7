package services

import (
	"slices"
)

// Equal reports whether two Tables are made of the same Config, so that there is no need to swap one for the other. The
// order of lists counts: translation gives them sorted. A nil Table equals only nil.
func Equal(a, b *Table) bool {
	if a == nil || b == nil || a == b {
		return a == b
	}
	x, y := &a.config, &b.config
	return x.Node == y.Node && x.Zone == y.Zone &&
		slices.Equal(x.NodeAddrs, y.NodeAddrs) &&
		slices.Equal(x.OwnAddrs, y.OwnAddrs) &&
		slices.Equal(x.ServiceCIDRs, y.ServiceCIDRs) &&
		slices.Equal(x.ClusterCIDRs, y.ClusterCIDRs) &&
		slices.Equal(x.DNSAddrs, y.DNSAddrs) &&
		slices.EqualFunc(x.Services, y.Services, equalServices) &&
		slices.EqualFunc(x.Pods, y.Pods, equalPods)
}

func equalServices(a, b Service) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name &&
		slices.Equal(a.ClusterIPs, b.ClusterIPs) &&
		a.ExternalName == b.ExternalName &&
		slices.Equal(a.ExternalIPs, b.ExternalIPs) &&
		slices.Equal(a.Ports, b.Ports) &&
		a.Affinity == b.Affinity &&
		a.InternalLocal == b.InternalLocal && a.ExternalLocal == b.ExternalLocal &&
		a.PublishNotReady == b.PublishNotReady &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, equalEndpoints)
}

func equalEndpoints(a, b Endpoint) bool {
	return a.Addr == b.Addr && a.ID == b.ID && a.Node == b.Node && a.Zone == b.Zone && a.Hostname == b.Hostname &&
		a.Ready == b.Ready && a.Serving == b.Serving && a.Terminating == b.Terminating &&
		slices.Equal(a.Ports, b.Ports)
}

func equalPods(a, b Pod) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.ID == b.ID && slices.Equal(a.Addrs, b.Addrs)
}
