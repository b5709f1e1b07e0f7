package container

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"tapestry.dev/tapestry/test/lab/kubelet"
)

// ProbePeriodAnnotation of a Pod overrides the period of its probes, such as "50ms". Kubernetes counts periods in
// seconds.
const ProbePeriodAnnotation = "tapestry.dev/probe-period"

// ServerFlags returns the built-in server's flags for the ports of a container without a command: UDP, plain TCP where
// the port's name starts with "tcp", and HTTP for the others.
func ServerFlags(c *corev1.Container) []string {
	var flags []string
	for _, p := range c.Ports {
		kind := "--http"
		switch {
		case p.Protocol == corev1.ProtocolUDP:
			kind = "--udp"
		case strings.HasPrefix(p.Name, "tcp"):
			kind = "--tcp"
		}
		flags = append(flags, kind, strconv.Itoa(int(p.ContainerPort)))
	}
	return flags
}

// Probe translates a container's probe. addr is an address of its pod.
func Probe(in *corev1.Probe, pod *corev1.Pod, c *corev1.Container, addr netip.Addr) (*kubelet.Probe, error) {
	out := &kubelet.Probe{
		InitialDelay: seconds(in.InitialDelaySeconds, 0), Period: seconds(in.PeriodSeconds, 10),
		Timeout: seconds(in.TimeoutSeconds, 1), Success: max(1, int(in.SuccessThreshold)), Failure: int(in.FailureThreshold),
	}
	if out.Failure == 0 {
		out.Failure = 3
	}
	if text := pod.Annotations[ProbePeriodAnnotation]; text != "" {
		period, err := time.ParseDuration(text)
		if err != nil || period <= 0 {
			return nil, fmt.Errorf("annotation %s is %q: expected a duration like 50ms", ProbePeriodAnnotation, text)
		}
		out.Period = period
	}
	switch {
	case in.HTTPGet != nil:
		port, err := probePort(in.HTTPGet.Port, c)
		if err != nil {
			return nil, err
		}
		host := addr.String()
		if in.HTTPGet.Host != "" {
			host = in.HTTPGet.Host
		}
		scheme := "http"
		if in.HTTPGet.Scheme == corev1.URISchemeHTTPS {
			scheme = "https"
		}
		out.HTTP = &kubelet.HTTPProbe{
			URL:    scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(port))) + "/" + strings.TrimPrefix(in.HTTPGet.Path, "/"),
			Header: map[string][]string{},
		}
		for _, h := range in.HTTPGet.HTTPHeaders {
			out.HTTP.Header[h.Name] = append(out.HTTP.Header[h.Name], h.Value)
		}
	case in.TCPSocket != nil:
		port, err := probePort(in.TCPSocket.Port, c)
		if err != nil {
			return nil, err
		}
		if in.TCPSocket.Host != "" {
			if addr, err = netip.ParseAddr(in.TCPSocket.Host); err != nil {
				return nil, fmt.Errorf("tcpSocket.host: %w", err)
			}
		}
		out.TCP = netip.AddrPortFrom(addr, port)
	case in.Exec != nil && len(in.Exec.Command) > 0:
		out.Exec = in.Exec.Command
	default:
		return nil, fmt.Errorf("expected one of httpGet, tcpSocket and exec with a command")
	}
	return out, nil
}

func seconds(n int32, otherwise int32) time.Duration {
	if n == 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

func probePort(p intstr.IntOrString, c *corev1.Container) (uint16, error) {
	if p.Type == intstr.String {
		for _, cp := range c.Ports {
			if cp.Name == p.StrVal {
				return uint16(cp.ContainerPort), nil
			}
		}
	}
	n := p.IntValue()
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %s is neither a number from 1 to 65535 nor the name of a port of the container", p.String())
	}
	return uint16(n), nil
}
