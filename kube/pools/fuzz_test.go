package pools_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube/pools"
)

// FuzzStatus has Services say what nobody has given them. Each four bytes are one Service: what its status lists (two
// bytes, a bit for each of points), its port, key and policy, and what it asks for. Whoever may write a status must
// not end the controllers, nobody has an address twice, and no port of an address is two Services'.
func FuzzStatus(f *testing.F) {
	points := [16]string{
		"192.168.0.1", "192.168.0.1", "::ffff:192.168.0.1", "192.168.0.2", "192.168.0.3", "192.168.0.9", "192.168.0.9",
		"2001:db8:9::1", "192.0.2.0", "192.0.2.0", "192.0.2.1", "::ffff:192.0.2.1", "203.0.113.1", "203.0.113.1", "node.example", "",
	}
	asks := [8]string{"", "", "", ", loadBalancerIP: 192.168.0.1", ", loadBalancerIP: 192.168.0.9", ", loadBalancerIP: 192.0.2.1", ", loadBalancerIP: 203.0.113.1", ", loadBalancerIP: here"}
	f.Add([]byte{0x03, 0, 0, 0})
	f.Add([]byte{0x05, 0, 0x40, 0})
	f.Add([]byte{0x60, 0, 0x80, 0, 0x60, 0, 0x01, 5})
	f.Add([]byte{0x02, 0x0f, 0xc4, 3, 0xff, 0xff, 0x05, 1, 0x60, 0x30, 0x45, 4})
	f.Fuzz(func(t *testing.T, data []byte) {
		docs := []string{pool("edge", `nodes: {matchLabels: {edge: "yes"}}`), pool("all", "nodes: {}, priority: 1"), pool("own", "addresses: [192.0.2.0/30], priority: 2")}
		for i := 0; len(data) >= 4 && i < 8; i, data = i+1, data[4:] {
			var has []string
			for bit, p := range points {
				if (uint(data[0])|uint(data[1])<<8)>>bit&1 != 0 {
					has = append(has, p)
				}
			}
			how, meta := data[2], ""
			spec := fmt.Sprintf(", ports: [{port: %d}]", 80+how&1) + asks[data[3]&7]
			if how&2 != 0 {
				spec += dual
			}
			if how>>2&3 != 0 {
				meta = fmt.Sprintf(", annotations: {tapestry.dev/allow-shared-ip: k%d}", how>>2&3)
			}
			if how&16 != 0 {
				spec += ", externalTrafficPolicy: Local, selector: {app: a}"
			}
			doc := svc(fmt.Sprintf("s%d", i), spec, meta, has...)
			if how&32 != 0 {
				doc = at80(doc)
			}
			docs = append(docs, had(doc, [4]string{"OnNodes", "OnNodes", "Assigned", "Other"}[how>>6]))
		}
		plan := pools.Assign(objects(t, docs...), true)
		taken := map[string]string{}
		for _, a := range plan.Services {
			seen := map[netip.Addr]bool{}
			for _, addr := range a.Addrs {
				if seen[addr] {
					t.Errorf("%s has %s twice", a.Service.Name, addr)
				}
				seen[addr] = true
				at := fmt.Sprint(addr, a.Service.Spec.Ports[0].Port)
				if other := taken[at]; other != "" {
					t.Errorf("%s and %s have %s", other, a.Service.Name, at)
				}
				taken[at] = a.Service.Name
			}
		}
		if t.Failed() {
			t.Log(strings.Join(docs[3:], "\n"))
		}
	})
}
