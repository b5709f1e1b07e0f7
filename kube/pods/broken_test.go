package pods

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/netstack"
)

// objectOf returns the Pod object of podOf(container) as kubelet writes it when the pod runs.
func objectOf(container string, addrs ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p-" + container, UID: "u"},
		Spec:       corev1.PodSpec{NodeName: "n1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	return p
}

func TestBroken(t *testing.T) {
	const mine = "10.244.1.3" // the first that the desk gives out
	yes := true
	owned := func(kind string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Controller: &yes}} }
	}
	for what, c := range map[string]struct {
		addrs    string // of the Pod object
		leased   bool
		attached bool
		byObject bool
		change   func(*corev1.Pod)
		want     string
	}{
		"lost":                    {addrs: mine, leased: true, want: "no TAP"},
		"lost, still starting":    {addrs: mine, leased: true, change: func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, want: "no TAP"},
		"lost, has a controller":  {addrs: mine, leased: true, change: owned("ReplicaSet"), want: "no TAP, managed"},
		"lost, static":            {addrs: mine, leased: true, change: owned("Node"), want: "no TAP"},
		"well":                    {addrs: mine, leased: true, attached: true},
		"of an earlier range":     {addrs: "10.244.7.3", attached: true, want: "old range"},
		"sandbox made anew":       {addrs: mine},
		"another sandbox's lease": {addrs: "10.244.1.5", leased: true},
		"not yet attached":        {leased: true},
		"without a lease":         {addrs: mine, byObject: true, want: "no TAP"},
		"without one, starting":   {addrs: mine, byObject: true, change: func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }},
		"ended":                   {addrs: mine, leased: true, change: func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }},
		"failed":                  {addrs: mine, leased: true, change: func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }},
		"being deleted":           {addrs: mine, leased: true, change: func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }},
		"of the host":             {addrs: mine, leased: true, change: func(p *corev1.Pod) { p.Spec.HostNetwork = true }},
		"of another node":         {addrs: mine, leased: true, change: func(p *corev1.Pod) { p.Spec.NodeName = "n2" }},
		"not an address":          {addrs: "10.244.1", leased: true},
	} {
		d := newDesk(t)
		if c.leased {
			d.prepare("a")
		}
		obj := objectOf("a")
		if c.addrs != "" {
			obj = objectOf("a", c.addrs)
		}
		if c.attached {
			d.there["default/p-a"] = netstack.AttachmentConfig{}
		}
		if c.change != nil {
			c.change(obj)
		}
		got := ""
		for _, b := range d.Broken([]*corev1.Pod{obj}, "n1", c.byObject) {
			if got = "no TAP"; b.OldRange {
				got = "old range"
			}
			if b.Managed {
				got += ", managed"
			}
			if b.Pod.String() != "Pod default/p-a" || b.UID != "u" || fmt.Sprint(b.Addrs) != "["+c.addrs+"]" {
				t.Errorf("%s: %+v", what, b)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

// The address of a pod that lost its TAP is not given to another before its DEL; that of a pod that did not come is.
func TestAddressOfBroken(t *testing.T) {
	d := newDesk(t)
	d.prepare("a")
	d.claimed = true
	d.now = d.now.Add(2 * prepareTime)
	d.review()
	if n := len(d.leases.Held()); n != 1 {
		t.Errorf("%d addresses are held, want that of the pod that runs", n)
	}
	d.claimed = false
	d.now = d.now.Add(2 * prepareTime)
	d.review()
	if n := len(d.leases.Held()); n != 0 {
		t.Errorf("%d addresses are held", n)
	}
}

func TestClaimed(t *testing.T) {
	a := []netip.Addr{netip.MustParseAddr("10.244.1.3"), netip.MustParseAddr("fd00::3")}
	list := []*corev1.Pod{objectOf("a", "10.244.1.3", "fd00::9")}
	for _, c := range []struct {
		node, name string
		addrs      []netip.Addr
		want       bool
	}{
		{"n1", "p-a", a, true},
		{"n1", "p-a", a[1:], false},
		{"n1", "p-b", a, false},
		{"n2", "p-a", a, false},
	} {
		if got := Claimed(list, c.node, "default", c.name, c.addrs); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
