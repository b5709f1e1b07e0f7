package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestOtherUserIsRefused: an update that would make keeper and agent another user changes nothing on any node. The pod
// that does not start says why, and what runs goes on. The next update, as the user that they are, ends it.
func TestOtherUserIsRefused(t *testing.T) {
	o := newOutage(t, state.Nodes[len(state.Nodes)-1])
	before := owners(t)
	w, end := o.watch()
	back := retemplate(t, "tapestry", func(p *corev1.PodTemplateSpec) {
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		*p = corev1.PodTemplateSpec{}
		if err := json.Unmarshal(bytes.ReplaceAll(text, []byte("60820"), []byte("60821")), p); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, soon, "a pod that is refused", func() error {
		said, running, err := failing(t.Context())
		for _, want := range []string{"is user 60820's, who keeper and agent of this node are", "user=60820,group=60820"} {
			if err == nil && !strings.Contains(said, want) {
				err = fmt.Errorf("it does not say %q: %q", want, said)
			}
		}
		if err == nil && running != len(state.Nodes) {
			err = fmt.Errorf("%d agents run", running)
		}
		return err
	})
	if now := owners(t); now != before {
		t.Errorf("the directories are now\n%s, and were\n%s", now, before)
	}
	if err := back(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*soon, "agents as before", func() error {
		said, running, err := failing(t.Context())
		if err == nil && (said != "" || running != len(state.Nodes)) {
			err = fmt.Errorf("%d agents run, and a pod says %q", running, said)
		}
		return err
	})
	end()
	o.report("an update to another user, and back", w)
}

// failing returns why an init step of an agent's pod failed, and how many agents are ready.
func failing(ctx context.Context) (said string, running int, err error) {
	list, err := client.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{LabelSelector: agents})
	if err != nil {
		return "", 0, err
	}
	for i := range list.Items {
		p := &list.Items[i]
		if ready(p) {
			running++
		}
		for _, s := range p.Status.InitContainerStatuses {
			for _, at := range []corev1.ContainerState{s.State, s.LastTerminationState} {
				if at.Terminated != nil && at.Terminated.ExitCode != 0 {
					said = at.Terminated.Message
				}
			}
		}
	}
	return said, running, nil
}

// owners says whose Tapestry's directories are on all nodes.
func owners(t *testing.T) string {
	t.Helper()
	var all []string
	for _, n := range state.Nodes {
		out, err := onNode(t.Context(), n.Name, "stat", "--format=%n %u:%g %a", "/run/tapestry", "/var/lib/tapestry")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n.Name+":", strings.TrimSpace(out))
	}
	return strings.Join(all, "\n")
}
