package pools_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/pools"
)

// world is a cluster with two nodes of both families, for the tables here.
const world = `
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {edge: "yes"}}, spec: {podCIDRs: [10.244.1.0/24]}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: InternalIP, address: "2001:db8:9::1"}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDRs: [10.244.2.0/24]}, status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: down, labels: {edge: "yes", is: down}}, status: {addresses: [{type: InternalIP, address: 192.168.0.3}], conditions: [{type: Ready, status: "Unknown"}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: shop}}}
`

// egress is an EgressAddress with 192.0.2.1.
const egress = `{apiVersion: tapestry.dev/v1alpha1, kind: EgressAddress, metadata: {name: out}, spec: {addresses: [192.0.2.1], namespaces: [shop]}}`

// svc is a Service in one line: its age in the order of the list, and whatever else is given.
func svc(name, spec, meta string, has ...string) string {
	var points []string
	for _, a := range has {
		points = append(points, fmt.Sprintf("{ip: %q}", a))
	}
	return fmt.Sprintf(`{apiVersion: v1, kind: Service, metadata: {name: %s%s}, spec: {type: LoadBalancer%s}, status: {loadBalancer: {ingress: [%s]}}}`, name, meta, spec, strings.Join(points, ", "))
}

// had returns a Service that has its addresses from here: of a pool of nodes when reason is OnNodes.
func had(doc, reason string) string {
	return strings.Replace(doc, "status: {", fmt.Sprintf("status: {conditions: [{type: %s, status: \"True\", reason: %s}], ", pools.Condition, reason), 1)
}

// at80 returns a Service that had port 80 at its addresses.
func at80(doc string) string {
	return strings.Replace(doc, "ingress: [{", "ingress: [{ports: [{port: 80, protocol: TCP}], ", 1)
}

func pool(name, spec string) string {
	return fmt.Sprintf(`{apiVersion: tapestry.dev/v1alpha1, kind: AddressPool, metadata: {name: %s}, spec: {%s}}`, name, spec)
}

// objects decodes documents. Each object is a second older than the next.
func objects(t testing.TB, docs ...string) *kube.Objects {
	t.Helper()
	var all kube.Builder
	at := time.Unix(1_000_000, 0)
	for _, doc := range append([]string{world}, docs...) {
		objs, err := codec.Decode("x.yaml", []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		for obj := range objs.All() {
			at = at.Add(time.Second)
			obj.SetCreationTimestamp(metav1.NewTime(at))
			if s, ok := obj.(*corev1.Service); ok {
				s.Spec.Ports = orOne(s.Spec.Ports)
				if len(s.Spec.IPFamilies) == 0 {
					s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
				}
				if s.Namespace == "" {
					s.Namespace = "default"
				}
			}
			all.Add(obj, "")
		}
	}
	objs := all.Objects()
	objs.Sort()
	return &objs
}

func orOne(ports []corev1.ServicePort) []corev1.ServicePort {
	if len(ports) == 0 {
		return []corev1.ServicePort{{Port: 80}}
	}
	return ports
}

// show returns who has what, in one line.
func show(p pools.Plan) string {
	var out []string
	for _, a := range p.Services {
		text := a.Service.Name + "="
		for i, addr := range a.Addrs {
			if i > 0 {
				text += ","
			}
			text += addr.String()
		}
		if a.Reason != "" {
			text += "!" + a.Reason
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

const (
	dual = `, ipFamilies: [IPv4, IPv6]`
	port = `, ports: [{port: 443}]`
)

func TestAssign(t *testing.T) {
	a := pool("a", "addresses: [192.0.2.0/30]")
	for name, tc := range map[string]struct {
		docs []string
		want string
		say  string // part of a problem; "" for no problem
	}{
		"in order of age":         {[]string{a, svc("y", "", ""), svc("x", "", "")}, "x=192.0.2.1 y=192.0.2.0", ""},
		"no .0":                   {[]string{pool("a", "addresses: [192.0.2.0/30], avoidBuggyIPs: true"), svc("x", "", "")}, "x=192.0.2.1", ""},
		"kept":                    {[]string{a, svc("x", "", ""), svc("y", "", "", "192.0.2.0")}, "x=192.0.2.1 y=192.0.2.0", ""},
		"none left":               {[]string{pool("a", "addresses: [192.0.2.7]"), svc("x", "", ""), svc("y", "", "")}, "x=192.0.2.7 y=!PoolExhausted", `no address is left for it in AddressPool "a"`},
		"no pool":                 {[]string{svc("x", "", "")}, "", ""},
		"no pool, our class":      {[]string{svc("x", ", loadBalancerClass: tapestry.dev/load-balancer", "")}, "x=!NoPool", "no AddressPool is for it"},
		"somebody else's":         {[]string{a, svc("x", "", "", "203.0.113.9")}, "", ""},
		"somebody else's, a name": {[]string{a, `{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {type: LoadBalancer}, status: {loadBalancer: {ingress: [{hostname: lb.example}]}}}`}, "", ""},
		"somebody else's so far":  {[]string{a, svc("x", "", "", "192.0.2.2")}, "x=192.0.2.2", ""},
		"other class":             {[]string{a, svc("x", ", loadBalancerClass: example.com/x", "")}, "", ""},
		"our class":               {[]string{a, svc("x", ", loadBalancerClass: tapestry.dev/load-balancer", "")}, "x=192.0.2.0", ""},
		"asked by field":          {[]string{a, svc("x", ", loadBalancerIP: 192.0.2.3", "")}, "x=192.0.2.3", ""},
		"asked by annotation":     {[]string{a, svc("x", "", `, annotations: {tapestry.dev/load-balancer-ips: 192.0.2.3}`)}, "x=192.0.2.3", ""},
		"asked in MetalLB's way":  {[]string{a, svc("x", "", `, annotations: {metallb.io/loadBalancerIPs: 192.0.2.3}`)}, "x=192.0.2.3", ""},
		"asked in its older way":  {[]string{a, svc("x", "", `, annotations: {metallb.universe.tf/loadBalancerIPs: 192.0.2.3}`)}, "x=192.0.2.3", ""},
		"asked, in no pool":       {[]string{a, svc("x", ", loadBalancerIP: 192.0.2.9", "")}, "x=!NoPool", "192.0.2.9, which it asks for, is in no AddressPool"},
		"asked, taken":            {[]string{a, svc("x", "", "", "192.0.2.3"), svc("y", ", loadBalancerIP: 192.0.2.3", "")}, "x=192.0.2.3 y=!AddressTaken", "belongs to Service default/x"},
		"asked, taken, has other": {[]string{a, svc("x", "", "", "192.0.2.3"), svc("y", ", loadBalancerIP: 192.0.2.3", "", "192.0.2.1")}, "x=192.0.2.3 y=192.0.2.1!AddressTaken", "belongs to Service default/x"},
		"asks for another":        {[]string{a, svc("x", ", loadBalancerIP: 192.0.2.3", "", "192.0.2.1")}, "x=192.0.2.3", ""},
		"asks in no words":        {[]string{a, svc("x", ", loadBalancerIP: here", "", "192.0.2.1")}, "x=192.0.2.1!BadRequest", `"here" is no address`},
		"asks for other family":   {[]string{a, svc("x", `, loadBalancerIP: "2001:db8::1"`, "")}, "x=!BadRequest", "the Service has none of that family"},
		"asks for two":            {[]string{a, svc("x", "", `, annotations: {tapestry.dev/load-balancer-ips: "192.0.2.1, 192.0.2.2"}`)}, "x=!BadRequest", "two addresses of one family"},
		"asks for a pool":         {[]string{a, pool("b", "addresses: [198.51.100.0/24], autoAssign: false"), svc("x", "", `, annotations: {tapestry.dev/address-pool: b}`)}, "x=198.51.100.0", ""},
		"asks for no pool":        {[]string{a, svc("x", "", `, annotations: {metallb.io/address-pool: c}`)}, "x=!NoPool", `there is no AddressPool "c"`},
		"asks for another pool":   {[]string{a, pool("b", "addresses: [198.51.100.0/24]"), svc("x", "", `, annotations: {tapestry.dev/address-pool: b}`, "192.0.2.1")}, "x=198.51.100.0", ""},
		"asks for a full pool":    {[]string{a, pool("b", "addresses: [198.51.100.7]"), svc("w", "", "", "198.51.100.7"), svc("x", "", `, annotations: {tapestry.dev/address-pool: b}`, "192.0.2.1")}, "w=198.51.100.7 x=192.0.2.1!PoolExhausted", `no address is left for it in AddressPool "b"`},
		"not automatically":       {[]string{pool("a", "addresses: [192.0.2.7], autoAssign: false"), svc("x", "", "")}, "x=!NoPool", "autoAssign"},
		"priority":                {[]string{pool("a", "addresses: [192.0.2.7], priority: 2"), pool("b", "addresses: [192.0.2.8], priority: 1"), svc("x", "", "")}, "x=192.0.2.8", ""},
		"by namespace": {[]string{pool("a", "addresses: [192.0.2.7], namespaceSelector: {matchLabels: {team: shop}}"), svc("x", "", ", namespace: shop"), svc("y", "", "")},
			"y=!NoPool x=192.0.2.7", "selectors"},
		"by label":                   {[]string{pool("a", "addresses: [192.0.2.0/24], serviceSelector: {matchLabels: {app: web}}"), svc("x", "", ", labels: {app: web}"), svc("y", ", loadBalancerIP: 192.0.2.9", "")}, "x=192.0.2.0 y=!NoPool", "not for this Service"},
		"no longer selected":         {[]string{pool("a", "addresses: [192.0.2.0/24], serviceSelector: {matchLabels: {app: web}}"), svc("x", "", "", "192.0.2.5")}, "x=192.0.2.5", ""},
		"a selector that is no such": {[]string{pool("a", "addresses: [192.0.2.0/24], serviceSelector: {matchExpressions: [{key: x, operator: Near}]}"), svc("x", "", "")}, "x=!NoPool", "so the pool is for nobody"},
		"shrunk":                     {[]string{a, had(svc("x", "", "", "203.0.113.9"), pools.Assigned)}, "x=203.0.113.9", "in no AddressPool any longer"},
		"two have one":               {[]string{a, svc("x", "", "", "192.0.2.1"), svc("y", "", "", "192.0.2.1")}, "x=192.0.2.1 y=192.0.2.0", ""},
		"both families":              {[]string{pool("a", `addresses: [192.0.2.0/30, "2001:db8::/64"]`), svc("x", dual, "")}, "x=192.0.2.0,2001:db8::", ""},
		"both, of two pools":         {[]string{a, pool("b", `addresses: ["2001:db8::/64"]`), svc("x", dual, "")}, "x=192.0.2.0,2001:db8::", ""},
		"both, kept of two pools":    {[]string{a, pool("b", `addresses: ["2001:db8::/64"]`), svc("x", dual, "", "192.0.2.2", "2001:db8::5")}, "x=192.0.2.2,2001:db8::5", ""},
		"both preferred":             {[]string{a, svc("x", dual+", ipFamilyPolicy: PreferDualStack", "")}, "x=192.0.2.0", ""},
		"both required":              {[]string{a, svc("x", dual+", ipFamilyPolicy: RequireDualStack", "")}, "x=!PoolExhausted", "of both families"},
		"one family less":            {[]string{pool("a", `addresses: [192.0.2.0/30, "2001:db8::/64"]`), svc("x", "", "", "192.0.2.1", "2001:db8::5")}, "x=192.0.2.1", ""},
		"asks for one of two":        {[]string{pool("a", `addresses: [192.0.2.0/30, "2001:db8::/64"]`), svc("x", dual+", loadBalancerIP: 192.0.2.3", "")}, "x=192.0.2.3,2001:db8::", ""},
		"asks for the one of two that it has": {[]string{pool("a", `addresses: [192.0.2.0/30, "2001:db8::/64"]`), svc("x", dual+", loadBalancerIP: 192.0.2.1", "", "192.0.2.1", "2001:db8::5")},
			"x=192.0.2.1,2001:db8::5", ""},
		"asks for another one of two": {[]string{pool("a", `addresses: [192.0.2.0/30, "2001:db8::/64"]`), svc("x", dual+", loadBalancerIP: 192.0.2.2", "", "192.0.2.1", "2001:db8::5")},
			"x=192.0.2.2,2001:db8::5", ""},
		"asks for one of two, on request": {[]string{pool("a", `addresses: ["2001:db8:1::/64"]`), pool("b", `addresses: [198.51.100.0/30, "2001:db8::/64"], autoAssign: false`),
			svc("x", dual+", loadBalancerIP: 198.51.100.3", "")}, "x=198.51.100.3,2001:db8::", ""},
		"asks for one of two, there is no other":  {[]string{a, svc("x", dual+", ipFamilyPolicy: PreferDualStack, loadBalancerIP: 192.0.2.3", "")}, "x=192.0.2.3", ""},
		"asks for one of two, and requires both":  {[]string{a, svc("x", dual+", ipFamilyPolicy: RequireDualStack, loadBalancerIP: 192.0.2.3", "")}, "x=192.0.2.3!PoolExhausted", "of both families"},
		"asks for one of two, no pool for others": {[]string{pool("a", "addresses: [192.0.2.0/30], autoAssign: false"), svc("x", dual+", ipFamilyPolicy: RequireDualStack, loadBalancerIP: 192.0.2.3", "")}, "x=192.0.2.3!PoolExhausted", "of both families"},
		"asks for the one of two that it has, of no pool": {[]string{pool("b", `addresses: ["2001:db8::/64"]`), had(svc("x", dual+", loadBalancerIP: 192.0.2.3", "", "192.0.2.3"), pools.Assigned)},
			"x=192.0.2.3,2001:db8::", "192.0.2.3 is in no AddressPool any longer"},
		"asks for the one of two that it has, of a node that went": {[]string{pool("a", "nodes: {}"), pool("b", `addresses: ["2001:db8::/64"]`), had(svc("x", dual+", loadBalancerIP: 192.168.0.77", "", "192.168.0.77"), pools.OnNodes)},
			"x=192.168.0.77", "192.168.0.77 is in no AddressPool any longer"},
		"asks for one node of two families": {[]string{pool("a", "nodes: {}"), had(svc("x", dual+", loadBalancerIP: 192.168.0.2", "", "192.168.0.1", "192.168.0.2", "2001:db8:9::1"), pools.OnNodes)}, "x=192.168.0.2", ""},
		"nodes, the older wants the port of the other": {[]string{pool("a", "nodes: {}"),
			at80(had(svc("x", port, "", "192.168.0.1", "192.168.0.2"), pools.OnNodes)), had(svc("y", port, ", namespace: shop", "192.168.0.1", "192.168.0.2"), pools.OnNodes)},
			"x=!AddressTaken y=192.168.0.1,192.168.0.2", "Service shop/y has one of its ports"},
		"nodes, the older has another port": {[]string{pool("a", "nodes: {}"),
			at80(had(svc("x", ", ports: [{port: 81}]", "", "192.168.0.1", "192.168.0.2"), pools.OnNodes)), had(svc("y", port, ", namespace: shop", "192.168.0.1", "192.168.0.2"), pools.OnNodes)},
			"x=192.168.0.1,192.168.0.2 y=192.168.0.1,192.168.0.2", ""},
		"shared, the older wants the port of the other": {[]string{a, at80(svc("x", port, `, annotations: {tapestry.dev/allow-shared-ip: k}`, "192.0.2.1")),
			svc("y", port, `, annotations: {tapestry.dev/allow-shared-ip: k}`, "192.0.2.1")}, "x=192.0.2.0 y=192.0.2.1", ""},
		"shared": {[]string{a, svc("x", "", `, annotations: {tapestry.dev/allow-shared-ip: k}`), svc("y", port, `, annotations: {metallb.io/allow-shared-ip: k}`)},
			"x=192.0.2.0 y=192.0.2.0", ""},
		"shared, one port": {[]string{a, svc("x", "", `, annotations: {tapestry.dev/allow-shared-ip: k}`), svc("y", "", `, annotations: {tapestry.dev/allow-shared-ip: k}`)},
			"x=192.0.2.0 y=192.0.2.1", ""},
		"shared, other key": {[]string{a, svc("x", "", `, annotations: {tapestry.dev/allow-shared-ip: k}`), svc("y", port, `, annotations: {tapestry.dev/allow-shared-ip: l}`)},
			"x=192.0.2.0 y=192.0.2.1", ""},
		"shared, other namespace": {[]string{a, svc("x", "", `, annotations: {tapestry.dev/allow-shared-ip: k}`), svc("y", port+", loadBalancerIP: 192.0.2.0", `, namespace: shop, annotations: {tapestry.dev/allow-shared-ip: k}`)},
			"x=192.0.2.0 y=!AddressTaken", "belongs to Service default/x"},
		"shared, Local with other pods": {[]string{a, svc("x", ", externalTrafficPolicy: Local, selector: {a: b}", `, annotations: {tapestry.dev/allow-shared-ip: k}`),
			svc("y", port+", externalTrafficPolicy: Local, selector: {a: c}", `, annotations: {tapestry.dev/allow-shared-ip: k}`)}, "x=192.0.2.0 y=192.0.2.1", ""},
		"nodes":                 {[]string{pool("a", "nodes: {}"), svc("x", "", "")}, "x=192.168.0.1,192.168.0.2", ""},
		"some nodes":            {[]string{pool("a", `nodes: {matchLabels: {edge: "yes"}}`), svc("x", dual, "")}, "x=192.168.0.1,2001:db8:9::1", ""},
		"nodes, other ports":    {[]string{pool("a", "nodes: {}"), svc("x", "", ""), svc("y", port, "")}, "x=192.168.0.1,192.168.0.2 y=192.168.0.1,192.168.0.2", ""},
		"nodes, one port":       {[]string{pool("a", "nodes: {}"), svc("x", "", ""), svc("y", "", "")}, "x=192.168.0.1,192.168.0.2 y=!AddressTaken", "Service default/x has one of its ports"},
		"nodes came":            {[]string{pool("a", "nodes: {}"), svc("x", "", "", "192.168.0.1")}, "x=192.168.0.1,192.168.0.2", ""},
		"a node went":           {[]string{pool("a", "nodes: {}"), svc("x", "", "", "192.168.0.1", "192.168.0.77")}, "x=192.168.0.1,192.168.0.2", ""},
		"one node, asked":       {[]string{pool("a", "nodes: {}"), svc("x", ", loadBalancerIP: 192.168.0.2", "")}, "x=192.168.0.2", ""},
		"nodes stay":            {[]string{pool("a", "nodes: {}, priority: 5"), pool("b", "addresses: [192.0.2.0/24]"), svc("x", "", "", "192.168.0.1")}, "x=192.168.0.1,192.168.0.2", ""},
		"nodes are down":        {[]string{pool("a", "nodes: {matchLabels: {is: down}}"), had(svc("x", "", "", "192.168.0.3"), pools.OnNodes)}, "x=192.168.0.3!PoolExhausted", "no node that is ready"},
		"nodes are down, Local": {[]string{pool("a", "nodes: {matchLabels: {is: down}}"), had(svc("x", ", externalTrafficPolicy: Local", "", "192.168.0.3"), pools.OnNodes)}, "x=192.168.0.3!PoolExhausted", "no node that is ready"},
		"nodes were replaced":   {[]string{pool("a", "nodes: {}"), had(svc("x", "", "", "192.168.0.77", "192.168.0.78"), pools.OnNodes)}, "x=192.168.0.1,192.168.0.2", ""},
		"listed twice":          {[]string{pool("a", "nodes: {}"), had(svc("x", "", "", "192.168.0.1", "192.168.0.1", "::ffff:192.168.0.1"), pools.OnNodes)}, "x=192.168.0.1,192.168.0.2", ""},
		"nodes, asks in vain":   {[]string{pool("a", "nodes: {}"), had(svc("x", ", loadBalancerIP: 192.0.2.9", "", "192.168.0.1", "192.168.0.2"), pools.OnNodes)}, "x=192.168.0.1,192.168.0.2!NoPool", "in no AddressPool"},
		"nodes, no words":       {[]string{pool("a", "nodes: {}"), had(svc("x", "", `, annotations: {tapestry.dev/load-balancer-ips: "192.168.0.1,garbage"}`, "192.168.0.1", "192.168.0.2"), pools.OnNodes)}, "x=192.168.0.1,192.168.0.2!BadRequest", "is no address"},
		"to nodes, in vain": {[]string{a, pool("b", "nodes: {}"), svc("w", "", `, annotations: {tapestry.dev/address-pool: b}`), had(svc("x", "", `, annotations: {tapestry.dev/address-pool: b}`, "192.0.2.1"), pools.Assigned)},
			"w=192.168.0.1,192.168.0.2 x=192.0.2.1!AddressTaken", "has one of its ports"},
		"own full, then nodes": {[]string{pool("a", "addresses: [192.0.2.7]"), pool("b", "nodes: {}"), svc("w", "", ""), svc("x", "", "")}, "w=192.0.2.7 x=192.168.0.1,192.168.0.2", ""},
		"port taken, then own": {[]string{pool("a", "nodes: {}"), pool("b", "addresses: [192.0.2.7]"), svc("w", "", ""), svc("x", "", "")}, "w=192.168.0.1,192.168.0.2 x=192.0.2.7", ""},
		"both required, in vain, cost nobody": {[]string{pool("a", "addresses: [192.0.2.7]"), svc("w", dual+", ipFamilyPolicy: RequireDualStack", ""), svc("x", "", "")},
			"w=!PoolExhausted x=192.0.2.7", "of both families"},
		"no node":                        {[]string{pool("a", `nodes: {matchLabels: {edge: "no"}}`), svc("x", "", "")}, "x=!PoolExhausted", "no node that is ready"},
		"over pods":                      {[]string{pool("a", "addresses: [10.244.0.0/16]"), svc("x", "", "")}, "x=!PoolExhausted", "overlaps 10.244.1.0/24, which are for pods"},
		"over Services":                  {[]string{pool("a", "addresses: [10.96.7.0-10.96.7.9]"), svc("x", "", "")}, "x=!PoolExhausted", "which are for Services"},
		"over a node":                    {[]string{pool("a", "addresses: [192.168.0.1-192.168.0.9]"), svc("x", "", "")}, "x=192.168.0.4", "is the address of a node"},
		"over an egress address":         {[]string{egress, pool("a", "addresses: [192.0.2.1-192.0.2.9]"), svc("x", "", "")}, "x=192.0.2.2", "192.0.2.1 in 192.0.2.1-192.0.2.9 is an address from which pods leave"},
		"an egress address is asked for": {[]string{egress, pool("a", "addresses: [192.0.2.1-192.0.2.9]"), svc("x", ", loadBalancerIP: 192.0.2.1", "")}, "x=!NoPool", "is an address from which pods leave"},
		"an egress address that it had":  {[]string{egress, pool("a", "addresses: [192.0.2.1-192.0.2.9]"), had(svc("x", "", "", "192.0.2.1"), pools.Assigned)}, "x=192.0.2.1", "is an address from which pods leave"},
		"over another pool":              {[]string{a, pool("b", "addresses: [192.0.2.2-192.0.2.9]"), svc("x", "", `, annotations: {tapestry.dev/address-pool: b}`)}, "x=!PoolExhausted", `overlaps AddressPool "a"`},
		"over itself":                    {[]string{pool("b", "addresses: [192.0.2.0/24, 192.0.2.9]"), svc("x", "", "")}, "x=192.0.2.0", `overlaps AddressPool "b"`},
		"no addresses":                   {[]string{pool("a", "addresses: [here]"), svc("x", "", "")}, "x=!PoolExhausted", `"here" is no addresses`},
		"backwards":                      {[]string{pool("a", "addresses: [192.0.2.9-192.0.2.2]"), svc("x", "", "")}, "x=!PoolExhausted", "ends before it begins"},
		"loopback":                       {[]string{pool("a", "addresses: [127.0.0.0/8]"), svc("x", "", "")}, "x=!PoolExhausted", "expected addresses that clients can reach"},
		"addresses and nodes":            {[]string{pool("a", "addresses: [192.0.2.7], nodes: {}"), svc("x", "", "")}, "x=!PoolExhausted", "keep one of the two"},
	} {
		t.Run(name, func(t *testing.T) {
			plan := pools.Assign(objects(t, tc.docs...), true)
			if got := show(plan); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			var said []string
			for _, p := range plan.Problems {
				said = append(said, p.String())
			}
			if all := strings.Join(said, "\n"); (tc.say == "") != (all == "") || !strings.Contains(all, tc.say) {
				t.Errorf("said %q, want %q", all, tc.say)
			}
		})
	}
}

// Where Tapestry is not the default, a Service without a class is another controller's, also one that has an address.
func TestNotDefault(t *testing.T) {
	docs := []string{
		pool("a", "addresses: [192.0.2.0/30]"), svc("none", "", ""), svc("had", "", "", "192.0.2.1"),
		svc("other", ", loadBalancerClass: example.com/x", ""), svc("ours", ", loadBalancerClass: tapestry.dev/load-balancer", ""),
	}
	for orNone, want := range map[bool]string{false: "ours=192.0.2.0", true: "had=192.0.2.1 none=192.0.2.0 ours=192.0.2.2"} {
		if got := show(pools.Assign(objects(t, docs...), orNone)); got != want {
			t.Errorf("default %v: got %s, want %s", orNone, got, want)
		}
	}
}

// TestUsage checks the numbers of a pool.
func TestUsage(t *testing.T) {
	plan := pools.Assign(objects(t,
		pool("a", "addresses: [192.0.2.0/24], avoidBuggyIPs: true"), pool("b", `addresses: ["2001:db8::/64"]`), pool("c", "addresses: [192.168.0.0/30]"), pool("d", "nodes: {}"),
		svc("x", "", `, annotations: {tapestry.dev/address-pool: a}`), svc("y", ", ipFamilies: [IPv6]", `, annotations: {tapestry.dev/address-pool: b}`),
		svc("z", "", `, annotations: {tapestry.dev/address-pool: d}`)), true)
	for name, want := range map[string]pools.Usage{
		"a": {Assigned: 1, Free: 253}, "b": {Assigned: 1, Free: 1<<53 - 1}, "c": {Free: 1}, "d": {Assigned: 2, Free: 3},
	} {
		if got := plan.Pools[name]; got.Assigned != want.Assigned || got.Free != want.Free {
			t.Errorf("%s: %d assigned and %d free, want %d and %d", name, got.Assigned, got.Free, want.Assigned, want.Free)
		}
	}
}

// TestAssignAlways goes through random changes and checks what must hold after each: nobody loses what it may keep, no
// address is with two that do not share it, and whoever is asked again says the same.
func TestAssignAlways(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 30 {
		docs := []string{pool("a", "addresses: [192.0.2.0/29]"), pool("b", `addresses: [198.51.100.0/30, "2001:db8::/126"], priority: 1`)}
		n := 0
		var last []*corev1.Service
		for range 30 {
			objs := objects(t, docs...)
			objs.Services = append(objs.Services, last...)
			for range rng.IntN(3) {
				n++
				spec, meta := "", ""
				switch rng.IntN(4) {
				case 0:
					spec = dual
				case 1:
					spec = dual + ", ipFamilyPolicy: RequireDualStack"
				}
				if rng.IntN(3) == 0 {
					meta = fmt.Sprintf(`, annotations: {tapestry.dev/allow-shared-ip: k%d}`, rng.IntN(2))
					spec += fmt.Sprintf(", ports: [{port: %d}]", 80+rng.IntN(4))
				}
				s := objects(t, svc(fmt.Sprintf("s%d", n), spec, meta)).Services[0]
				s.CreationTimestamp = metav1.NewTime(time.Unix(2_000_000+int64(n), 0))
				objs.Services = append(objs.Services, s)
			}
			objs.Services = slices.DeleteFunc(objs.Services, func(*corev1.Service) bool { return rng.IntN(10) == 0 })
			for _, s := range objs.Services {
				if s.Annotations[kube.SharedAddressAnnotation] != "" && rng.IntN(8) == 0 {
					s.Annotations[kube.SharedAddressAnnotation] = fmt.Sprintf("k%d", rng.IntN(3))
				}
			}
			plan := pools.Assign(objs, true)
			last = check(t, objs, plan)
			objs.Services = last
			if again := pools.Assign(objs, true); show(again) != show(plan) {
				t.Fatalf("round %d: first %s\nthen %s", round, show(plan), show(again))
			}
		}
	}
}

// check verifies a plan, and returns the Services as they are afterwards.
func check(t *testing.T, objs *kube.Objects, plan pools.Plan) (after []*corev1.Service) {
	t.Helper()
	type place struct {
		addr netip.Addr
		port int32
	}
	taken, keys, stays := map[place]string{}, map[netip.Addr]string{}, map[netip.Addr]bool{}
	for _, a := range plan.Services {
		s := a.Service.DeepCopy()
		had := map[netip.Addr]bool{}
		for _, in := range s.Status.LoadBalancer.Ingress {
			if !slices.Contains(a.Addrs, netip.MustParseAddr(in.IP)) {
				t.Fatalf("%s had %s and has %v", s.Name, in.IP, a.Addrs)
			}
			had[netip.MustParseAddr(in.IP)] = true
		}
		s.Status.LoadBalancer.Ingress = nil
		key := s.Annotations[kube.SharedAddressAnnotation]
		for i, addr := range a.Addrs {
			in := corev1.LoadBalancerIngress{IP: addr.String()}
			if a.Shared && i == 0 {
				for _, p := range s.Spec.Ports {
					in.Ports = append(in.Ports, corev1.PortStatus{Port: p.Port, Protocol: p.Protocol})
				}
			}
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, in)
			// Of those whose keys differ all had it before.
			if other, there := keys[addr]; there && (other == "" || other != key) && !(stays[addr] && had[addr]) {
				t.Fatalf("%s is shared by keys %q and %q", addr, other, key)
			}
			stays[addr] = had[addr] && (stays[addr] || keys[addr] == "")
			keys[addr] = key
			for _, p := range s.Spec.Ports {
				at := place{addr, p.Port}
				if taken[at] != "" {
					t.Fatalf("%v is with %s and %s", at, taken[at], s.Name)
				}
				taken[at] = s.Name
			}
		}
		after = append(after, s)
	}
	if len(after) != len(objs.Services) {
		t.Fatalf("%d of %d Services", len(after), len(objs.Services))
	}
	return after
}
