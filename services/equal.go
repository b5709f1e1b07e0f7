package services

import (
	"slices"

	"tapestry.dev/tapestry/roll"
)

// equalConfigs reports whether the Tables of x and y would be the same. The order of lists counts; kube/translate
// sorts them.
func equalConfigs(x, y *Config) bool {
	return equalNodes(x, y) && equalLists(x.HostPorts, y.HostPorts, same) && equalLists(x.Pods, y.Pods, equalPods) &&
		equalAll(x.Services, y.Services)
}

// equalAll compares two lists of Services.
func equalAll(x, y roll.List[*Service]) bool {
	changed, ok := roll.Replaced(x, y)
	return ok && !slices.ContainsFunc(changed, func(i int) bool { return !equalServices(x.At(i), y.At(i)) })
}

func equalServices(a, b *Service) bool { return a == b || equalFronts(a, b) && equalBacks(a, b) }

// equalNodes compares everything except Services, Pods and HostPorts.
func equalNodes(x, y *Config) bool {
	return x.Node == y.Node &&
		slices.Equal(x.NodeAddrs, y.NodeAddrs) && slices.Equal(x.NodeNames, y.NodeNames) &&
		slices.Equal(x.OwnAddrs, y.OwnAddrs) && slices.Equal(x.NoNodePorts, y.NoNodePorts) &&
		slices.Equal(x.ServiceCIDRs, y.ServiceCIDRs) &&
		slices.Equal(x.ClusterCIDRs, y.ClusterCIDRs) &&
		slices.Equal(x.DNSAddrs, y.DNSAddrs)
}

// equalLists compares two lists. It does not look at the elements when both are the same slice, since successive
// Configs share most of their memory.
func equalLists[T any](a, b []T, equal func(a, b *T) bool) bool {
	if len(a) != len(b) {
		return false
	}
	if len(a) == 0 || &a[0] == &b[0] {
		return true
	}
	for i := range a {
		if !equal(&a[i], &b[i]) {
			return false
		}
	}
	return true
}

func same[T comparable](a, b *T) bool { return *a == *b }

// equalFronts compares everything except the Endpoints.
func equalFronts(a, b *Service) bool {
	return a == b || a.Namespace == b.Namespace && a.Name == b.Name &&
		equalLists(a.ClusterIPs, b.ClusterIPs, same) &&
		equalLists(a.ExternalIPs, b.ExternalIPs, same) && equalLists(a.SocketIPs, b.SocketIPs, same) && a.Proxy == b.Proxy &&
		equalLists(a.Ports, b.Ports, same) &&
		a.Affinity == b.Affinity && a.Balance == b.Balance &&
		a.InternalLocal == b.InternalLocal && a.ExternalLocal == b.ExternalLocal &&
		a.PublishNotReady == b.PublishNotReady && a.HealthCheckNodePort == b.HealthCheckNodePort &&
		(a.SourceRanges == nil) == (b.SourceRanges == nil) && equalLists(a.SourceRanges, b.SourceRanges, same)
}

func equalBacks(a, b *Service) bool {
	return equalLists(a.Endpoints, b.Endpoints, equalEndpoints) && equalLists(a.Parts, b.Parts, func(p, q **Part) bool {
		return *p == *q || equalLists((*p).Endpoints, (*q).Endpoints, equalEndpoints)
	})
}

func equalEndpoints(a, b *Endpoint) bool {
	return a.Addr == b.Addr && a.ID == b.ID && a.Node == b.Node &&
		a.ForNode == b.ForNode && a.ForZone == b.ForZone &&
		a.Ready == b.Ready && a.Serving == b.Serving && a.Terminating == b.Terminating &&
		slices.Equal(a.Ports, b.Ports)
}

func equalPods(a, b *Pod) bool {
	return a.ID == b.ID && slices.Equal(a.Addrs, b.Addrs)
}
