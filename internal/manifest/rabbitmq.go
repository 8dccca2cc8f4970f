package manifest

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
)

// RabbitmqBrokerConfig is the kind of that name of knative.dev/eventing-rabbitmq v0.48, with all fields that it has there: the module itself brings the whole of
// RabbitMQ's operator along.
type RabbitmqBrokerConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              RabbitmqBrokerConfigSpec `json:"spec"`
}

// RabbitmqBrokerConfigSpec says which server holds a broker's events, and how.
type RabbitmqBrokerConfigSpec struct {
	RabbitmqClusterReference *RabbitmqClusterReference `json:"rabbitmqClusterReference,omitempty"`
	// QueueType is quorum or classic.
	QueueType string `json:"queueType"`
	Vhost     string `json:"vhost,omitempty"`
}

// RabbitmqClusterReference names a server: an operator's cluster by Name, or any by the Secret that says where it is.
type RabbitmqClusterReference struct {
	Name             string                       `json:"name,omitempty"`
	Namespace        string                       `json:"namespace,omitempty"`
	ConnectionSecret *corev1.LocalObjectReference `json:"connectionSecret,omitempty"`
}

// SetDefaults fills in what is left out: the reference is to the config's own namespace.
func (c *RabbitmqBrokerConfig) SetDefaults(context.Context) {
	if r := c.Spec.RabbitmqClusterReference; r != nil && r.Namespace == "" {
		r.Namespace = c.Namespace
	}
	if c.Spec.QueueType == "" {
		c.Spec.QueueType = "quorum"
	}
}

// Validate refuses what its webhook refuses.
func (c *RabbitmqBrokerConfig) Validate(context.Context) *apis.FieldError {
	if q := c.Spec.QueueType; q != "quorum" && q != "classic" {
		return apis.ErrInvalidValue(q, "spec.queueType", "name quorum or classic")
	}
	r := c.Spec.RabbitmqClusterReference
	switch {
	case r == nil:
		return apis.ErrMissingField("spec.rabbitmqClusterReference")
	case r.Name == "" && r.ConnectionSecret == nil:
		return apis.ErrMissingOneOf("name", "connectionSecret").ViaField("spec", "rabbitmqClusterReference")
	case r.Name != "" && r.ConnectionSecret != nil:
		return apis.ErrMultipleOneOf("name", "connectionSecret").ViaField("spec", "rabbitmqClusterReference")
	}
	return nil
}
