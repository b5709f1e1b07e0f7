package services

import (
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// A user who may write a Pod, or a CNI request, may ask for any hostIP. If the address is not this node's own, the
// hostPort gets none of its packets, whether it belongs to another node, a Service, cluster DNS, a pod or the outside.
func TestHostIPOfOthers(t *testing.T) {
	c := testConfig()
	for _, host := range []string{"192.0.2.2:8080", "10.96.0.1:8080", "10.96.0.1:80", "10.96.0.10:53", "10.0.0.1:8080", "203.0.113.9:443", "169.254.169.254:80"} {
		c.HostPorts = append(c.HostPorts, hostPort(host+" 10.0.0.66:80"))
	}
	c.HostPorts = append(c.HostPorts, hostPort("192.0.2.1:8080 10.0.0.66:80"))
	table, _ := NewTable(c)
	for _, dst := range []string{"192.0.2.2:8080", "10.96.0.1:8080", "10.96.0.1:80", "10.96.0.10:53", "10.0.0.1:8080", "203.0.113.9:443", "169.254.169.254:80"} {
		for i := range 100 { // for many client ports, since the choice depends on them
			tp := tuple("tcp 10.0.0.7:999 " + dst)
			tp.SrcPort += uint16(i)
			if got := table.Pick(tp); got.Kind == packet.Picked && got.To.AddrPort().Addr().String() == "10.0.0.66" {
				t.Errorf("packets to %s go to the pod that asked for that hostIP", dst)
				break
			}
		}
	}
	if got := table.Pick(tuple("tcp 10.0.0.7:999 192.0.2.1:8080")); got.Kind != packet.Picked || got.To.AddrPort().Addr().String() != "10.0.0.66" {
		t.Errorf("its own address leads to %+v", got)
	}
}
