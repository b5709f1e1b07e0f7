package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"tapestry.dev/tapestry/test/kubernetes/lab"
)

const keepers = "app.kubernetes.io/name=tapestry,app.kubernetes.io/component=keeper"

// TestRights: according to the kernel, no long-running process of Tapestry has a capability or a way to get one.
// deploy/render checks the containers' security contexts.
func TestRights(t *testing.T) {
	for _, n := range state.Nodes {
		out, err := onNode(t.Context(), n.Name, "sh", "-c", `for p in /proc/[0-9]*; do
			case "$(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)" in "/tapestry agent"*|"/tapestry keeper"*|"/tapestry supervise"*) ;; *) continue;; esac
			printf '%s ' "$(tr '\0' ' ' <"$p/cmdline" | cut -d' ' -f2)"
			awk '/^(Uid|Gid|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):/ { printf "%s%s ", $1, $2 }' "$p/status"; echo
		done`)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			name, rights, _ := strings.Cut(strings.TrimSpace(line), " ")
			names = append(names, name)
			const none = "0000000000000000"
			want := "Uid:60820 Gid:60820 CapInh:" + none + " CapPrm:" + none + " CapEff:" + none + " CapBnd:" + none + " CapAmb:" + none + " NoNewPrivs:1 Seccomp:2"
			if rights != want {
				t.Errorf("%s on %s: %s, want %s", name, n.Name, rights, want)
			}
		}
		slices.Sort(names)
		if !slices.Equal(names, []string{"agent", "keeper", "supervise"}) {
			t.Errorf("%s runs %v, want an agent, its supervisor and a keeper", n.Name, names)
		}
	}
}

// TestKeeperReplaced: when the keepers' pods are deleted, the agents give everything back to the next keepers. The
// agents may be replaced after that. Connections that began before go on through both.
func TestKeeperReplaced(t *testing.T) {
	ns := namespace(t)
	pods := onEachNode(t, ns)
	s := service(t, ns, len(pods), func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{{Name: "iperf", Port: iperfPort}}
	})
	iperf(t, pods)
	c := newStream(t, pods[0], s.Spec.ClusterIP)
	replace(t, keepers)
	for _, n := range state.Nodes {
		eventually(t, soon, "everything given back on "+n.Name, func() error {
			out, err := onNode(t.Context(), n.Name, "curl", "--silent", "--max-time", "2", "http://127.0.0.1:10256/readyz")
			if err == nil && !strings.Contains(out, "[+]keeper ok") {
				err = fmt.Errorf("readyz says %s", out)
			}
			return err
		})
	}
	c.goesOn(t)
	replace(t, agents)
	c.goesOn(t)
}

// replace deletes the pods of one of Tapestry's DaemonSets, all of them or those on these nodes. It returns when their
// replacements are ready.
func replace(t *testing.T, selector string, on ...lab.Node) {
	t.Helper()
	if len(on) == 0 {
		on = state.Nodes
	}
	theirs := func() (list []corev1.Pod, err error) {
		all, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, err
		}
		for _, p := range all.Items {
			if slices.ContainsFunc(on, func(n lab.Node) bool { return n.Name == p.Spec.NodeName }) {
				list = append(list, p)
			}
		}
		return list, nil
	}
	old, err := theirs()
	if err != nil {
		t.Fatal(err)
	}
	if len(old) != len(on) {
		t.Fatalf("%d pods with %s, want %d", len(old), selector, len(on))
	}
	was := map[types.UID]bool{}
	for _, p := range old {
		was[p.UID] = true
		if err := client.CoreV1().Pods("kube-system").Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, soon, "new pods with "+selector, func() error {
		now, err := theirs()
		if err != nil {
			return err
		}
		n := 0
		for i := range now {
			if p := &now[i]; !was[p.UID] && ready(p) {
				n++
			}
		}
		// Pods that are ending are still listed for a moment.
		if n != len(on) || len(now) != len(on) {
			return fmt.Errorf("%d of %d pods are new and ready, want %d", n, len(now), len(on))
		}
		return nil
	})
}

// TestOwnNodeOnly: an agent's token can change only its own Node, and there only what is Tapestry's.
func TestOwnNodeOnly(t *testing.T) {
	list, err := client.CoreV1().Pods("kube-system").List(t.Context(), metav1.ListOptions{LabelSelector: agents, FieldSelector: "spec.nodeName=" + state.Nodes[0].Name})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%d agents on %s, %v", len(list.Items), state.Nodes[0].Name, err)
	}
	p := &list.Items[0]
	agent := as(t, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID})
	own, other := state.Nodes[0].Name, state.Nodes[1].Name
	const key, any = "tapestry.dev/e2e", `{"metadata":{"annotations":{"tapestry.dev/e2e":"x"}}}`
	t.Cleanup(func() {
		remove := []byte(`{"metadata":{"annotations":{"` + key + `":null}}}`)
		if _, err := client.CoreV1().Nodes().Patch(context.Background(), own, types.MergePatchType, remove, metav1.PatchOptions{}); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		node, patch string
		status      bool
		want        string // in the refusal; "" for none
	}{
		{node: own, patch: any},
		{node: other, patch: any, want: "an agent may change its own Node, " + own},
		{node: own, patch: `{"metadata":{"annotations":{"example.com/x":"y"}}}`, want: "begin with tapestry.dev/"},
		{node: own, patch: `{"metadata":{"labels":{"x":"y"}}}`, want: "neither spec nor labels"},
		{node: own, patch: `{"spec":{"unschedulable":true}}`, want: "neither spec nor labels"},
		{node: own, patch: `{"metadata":{"labels":{"x":"y"}}}`, status: true, want: "neither spec nor labels"},
		{node: own, patch: `{"status":{"conditions":[{"type":"Ready","status":"False"}]}}`, status: true, want: "no other condition"},
		{node: own, patch: `{"status":{"addresses":[{"type":"InternalDNS","address":"x"}]}}`, status: true, want: "no address"},
		{node: other, patch: `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True"}]}}`, status: true, want: "and no other"},
	} {
		var sub []string
		if c.status {
			sub = []string{"status"}
		}
		_, err := agent.CoreV1().Nodes().Patch(t.Context(), c.node, types.StrategicMergePatchType, []byte(c.patch), metav1.PatchOptions{}, sub...)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s of %s: %v", c.patch, c.node, err)
		case c.want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s of %s: %v, want it forbidden with %q", c.patch, c.node, err, c.want)
		}
	}
	// A token that does not belong to a pod.
	_, err = as(t, nil).CoreV1().Nodes().Patch(t.Context(), own, types.MergePatchType, []byte(any), metav1.PatchOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("a token without a node: %v", err)
	}
	// The token must not allow what no agent needs.
	if _, err := agent.CoreV1().ConfigMaps("kube-system").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("ConfigMaps: %v", err)
	}
	if err := agent.CoreV1().Nodes().Delete(t.Context(), other, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}); !apierrors.IsForbidden(err) {
		t.Errorf("delete a Node: %v", err)
	}
}

// as returns a client with a token of the agents' service account that is bound to the given object.
func as(t *testing.T, bound *authenticationv1.BoundObjectReference) kubernetes.Interface {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	token, err := client.CoreV1().ServiceAccounts("kube-system").CreateToken(t.Context(), "tapestry", request, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := rest.AnonymousClientConfig(config)
	c.BearerToken = token.Status.Token
	out, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestIngressPort: an agent that may not bind port 80 serves Ingress there on every node, since the init step makes the
// sockets. Connections wait in the sockets while the agent is replaced.
func TestIngressPort(t *testing.T) {
	for _, n := range state.Nodes {
		url := "http://" + net.JoinHostPort(n.Addrs[0], "80") + "/"
		eventually(t, 10*time.Second, "an answer of "+url, func() error {
			out, err := onNode(t.Context(), "outside", "curl", "--silent", "--show-error", "--max-time", "3", "--output", "/dev/null", "--write-out", "%{http_code}", url)
			if err == nil && out != "404" { // nothing is routed
				err = fmt.Errorf("status %s", out)
			}
			return err
		})
	}
}
