package translate

import (
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/kube"
)

// defaultServiceCIDRs are the service ranges of a cluster without ServiceCIDR objects.
var defaultServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}

// dnsIndex is the index, in a service range, of the address that serves DNS. kubeadm uses the same index.
const dnsIndex = 10

// rangeStage turns ServiceCIDRs into the service ranges.
type rangeStage struct {
	joined memo[list[*networkingv1.ServiceCIDR], []netip.Prefix]
	all    memo[[2]list[netip.Prefix], []netip.Prefix]
}

// with returns the announced ranges and those that Options name.
func (s *rangeStage) with(announced, named []netip.Prefix, say *kube.Report) []netip.Prefix {
	if len(named) == 0 {
		return announced
	}
	return s.all.once([2]list[netip.Prefix]{identity(announced), identity(named)}, say, func(*kube.Report) []netip.Prefix {
		return addressing.Outermost(slices.Concat(announced, named))
	})
}

func (s *rangeStage) of(objs []*networkingv1.ServiceCIDR, say *kube.Report) []netip.Prefix {
	return s.joined.once(identity(objs), say, func(say *kube.Report) []netip.Prefix { return serviceRanges(objs, say) })
}

// ServiceRanges returns the service ranges of a cluster: those of its ServiceCIDR objects, or the default ones when
// it has none.
func ServiceRanges(objs kube.Objects) []netip.Prefix {
	return serviceRanges(objs.ServiceCIDRs, new(kube.Report))
}

func serviceRanges(objs []*networkingv1.ServiceCIDR, say *kube.Report) []netip.Prefix {
	var list []netip.Prefix
	for _, obj := range objs {
		for i, text := range obj.Spec.CIDRs {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				say.Errorf(kube.RefOf(obj), index("spec.cidrs", i), "%q is not a prefix: expected one like 10.96.0.0/16", text)
				continue
			}
			if p = p.Masked(); !slices.Contains(list, p) {
				list = append(list, p)
			}
		}
	}
	if len(list) == 0 {
		return slices.Clone(defaultServiceCIDRs)
	}
	slices.SortFunc(list, comparePrefix)
	return list
}

// DefaultDNSAddrs returns the addresses where pods ask for names unless a Service says otherwise: one address in each
// service range.
func DefaultDNSAddrs(ranges []netip.Prefix) []netip.Addr {
	var addrs []netip.Addr
	for _, p := range ranges {
		a := p.Masked().Addr()
		for range dnsIndex {
			a = a.Next()
		}
		if p.Contains(a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
