package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/cert"
)

// TestWebhook: the API server calls an admission webhook through a Service. The webhook runs in a pod on the same node,
// and in one on another node.
func TestWebhook(t *testing.T) {
	for _, n := range state.Nodes {
		t.Run(n.Name, func(t *testing.T) {
			ns := namespace(t)
			name := "web." + ns + ".svc"
			pem, key, err := cert.GenerateSelfSignedCertKey(name, nil, []string{name})
			if err != nil {
				t.Fatal(err)
			}
			secret := &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: "tls"}, Type: corev1.SecretTypeTLS,
				Data: map[string][]byte{corev1.TLSCertKey: pem, corev1.TLSPrivateKeyKey: key},
			}
			if _, err := client.CoreV1().Secrets(ns).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			p := netexec(ns, "webhook", n.Name)
			p.Spec.Volumes = []corev1.Volume{{Name: "tls", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "tls"}}}}
			c := &p.Spec.Containers[0]
			c.Args = []string{"webhook", "--port=8443", "--tls-cert-file=/tls/tls.crt", "--tls-private-key-file=/tls/tls.key"}
			c.VolumeMounts = []corev1.VolumeMount{{Name: "tls", MountPath: "/tls"}}
			c.ReadinessProbe.HTTPGet = &corev1.HTTPGetAction{Scheme: corev1.URISchemeHTTPS, Path: "/readyz", Port: intstr.FromInt32(8443)}
			start(t, p)
			service(t, ns, 1, func(s *corev1.Service) {
				s.Spec.Ports = []corev1.ServicePort{{Port: 443, TargetPort: intstr.FromInt32(8443)}}
			})
			deny(t, ns, pem)
			eventually(t, soon, "a refusal by the webhook", func() error {
				configMap := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "denied-"}}
				_, err := client.CoreV1().ConfigMaps(ns).Create(t.Context(), configMap, metav1.CreateOptions{})
				if err == nil || !strings.Contains(err.Error(), "this webhook denies all requests") {
					return fmt.Errorf("creating a ConfigMap: %v", err)
				}
				return nil
			})
		})
	}
}

// deny makes the API server ask the Service web about new ConfigMaps in the namespace.
func deny(t *testing.T, ns string, ca []byte) {
	t.Helper()
	path, none, fail, seconds := "/always-deny", admissionv1.SideEffectClassNone, admissionv1.Fail, int32(5)
	config := &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name:              "deny.tapestry.dev",
			ClientConfig:      admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: ns, Name: "web", Path: &path}, CABundle: ca},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: ns}},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}},
			FailurePolicy: &fail, SideEffects: &none, TimeoutSeconds: &seconds, AdmissionReviewVersions: []string{"v1"},
		}},
	}
	api := client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	if _, err := api.Create(t.Context(), config, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.Delete(context.Background(), ns, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}
