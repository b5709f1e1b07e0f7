package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestServiceTurns: a Service turns from blue to green, as deployments do. New connections go to green pods.
// Connections to blue pods go on until the pods are gone, and then their clients are told.
func TestServiceTurns(t *testing.T) {
	ns := namespace(t)
	inside := processIn(t, start(t, netexec(ns, "client", state.Nodes[0].Name))[0])
	var blue []*corev1.Pod
	for i, n := range state.Nodes {
		p := netexec(ns, fmt.Sprint("blue-", i), n.Name)
		p.Labels["color"] = "blue"
		blue = append(blue, p)
	}
	blue = start(t, blue...)
	s := service(t, ns, len(blue), func(s *corev1.Service) { s.Spec.Selector = map[string]string{"color": "blue"} })
	addr := net.JoinHostPort(s.Spec.ClusterIP, "80")
	conns := map[string]net.Conn{}
	eventually(t, soon, "a connection to each pod", func() error {
		c, err := dialIn(inside, addr)
		if err != nil {
			return err
		}
		name, err := hostname(c, answered)
		if err != nil {
			return errors.Join(err, c.Close())
		}
		t.Cleanup(func() { c.Close() })
		if conns[name] = c; len(conns) < len(blue) {
			return fmt.Errorf("%d of %d", len(conns), len(blue))
		}
		return nil
	})
	green := netexec(ns, "green", state.Nodes[0].Name)
	green.Labels["color"] = "green"
	start(t, green)
	patch := []byte(`{"spec":{"selector":{"color":"green"}}}`)
	if _, err := client.CoreV1().Services(ns).Patch(t.Context(), s.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	// The connections are made one after the other, since the agent may learn of the new pod before it learns that the
	// old ones no longer count.
	eventually(t, soon, "twenty connections to the green pod", func() error {
		for range 20 {
			c, err := dialIn(inside, addr)
			if err != nil {
				return err
			}
			name, err := hostname(c, answered)
			if err := errors.Join(err, c.Close()); err != nil || name != "green" {
				return fmt.Errorf("%q answers (%v)", name, err)
			}
		}
		return nil
	})
	now := int64(0)
	for _, p := range blue {
		if name, err := hostname(conns[p.Name], answered); err != nil || name != p.Name {
			t.Errorf("the connection to %s, which is in no Service any longer: %q, %v", p.Name, name, err)
		}
		if err := client.CoreV1().Pods(ns).Delete(t.Context(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		eventually(t, soon, "the end of the connection to "+p.Name, func() error {
			if _, err := hostname(conns[p.Name], answered); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("the connection: %v", err)
			}
			return nil
		})
	}
}

// dialIn connects from the network of a process.
func dialIn(pid int, addr string) (c net.Conn, err error) {
	err = inNetwork(pid, func() error {
		c, err = net.DialTimeout("tcp4", addr, 2*time.Second)
		return err
	})
	return c, err
}

// answered is how long one waits for an answer where nothing is wrong.
const answered = 2 * time.Second

// hostname asks a netexec for its name, over a connection that stays open, and waits so long for the answer.
func hostname(c net.Conn, wait time.Duration) (string, error) {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return "", err
	}
	r, err := http.NewRequest(http.MethodGet, "http://netexec/hostname", nil)
	if err != nil {
		return "", err
	}
	if err := r.Write(c); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return strings.TrimSpace(string(b)), err
}
